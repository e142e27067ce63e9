"""Packed logits must equal those of each sample alone; checked for SDPA, eager, and the flattened Flash layout."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_flash_attention_utils import _is_packed_sequence, prepare_fa_kwargs_from_position_ids

from schemas.errors import UserError
from trainer.data import to_tensors
from trainer.taps import accepts_logits_to_keep, check_packing, masked_logits

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def model(kind: str, attention: str, **changes: Any):
    torch.manual_seed(0)
    config, build = (LlamaConfig, LlamaForCausalLM) if kind == "llama" else (Qwen3Config, Qwen3ForCausalLM)
    student = build._from_config(config(**{**SHAPE, **changes}), attn_implementation=attention)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.ndim == 2:
                weight.mul_(6)
    return student.eval()


def alone(student, cache, samples: list[int]) -> torch.Tensor:
    rows = []
    for sample in samples:
        ids = torch.from_numpy(cache.samples[sample]["input_ids"])[None]
        rows.append(student(ids).logits[0][torch.from_numpy(cache.samples[sample]["loss_mask"])])
    return torch.cat(rows)


PACKED = [[0, 3, 5], [2, 4], [7]]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("keep_only_masked", [False, True])
@torch.no_grad()
def test_packed_logits_equal_those_of_each_sample_alone(
    cache, kind: str, attention: str, flatten: bool, keep_only_masked: bool
) -> None:
    student = model(kind, attention)
    batch = to_tensors(cache.read_rows(PACKED, length=64), packed=True)
    logits = masked_logits(student, batch, keep_only_masked, flatten)
    torch.testing.assert_close(logits, alone(student, cache, [0, 3, 5, 2, 4, 7]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_packed_with_sliding_windows(cache) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    student = model("qwen3", "sdpa", **windows)
    assert "sliding_attention" in student.config.layer_types
    batch = to_tensors(cache.read_rows(PACKED), packed=True)
    logits = masked_logits(student, batch, keep_only_masked=True)
    torch.testing.assert_close(logits, alone(student, cache, [0, 3, 5, 2, 4, 7]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep_only_masked", [False, True])
@torch.no_grad()
def test_padded_logits_equal_those_of_each_sample_alone(cache, keep_only_masked: bool) -> None:
    student = model("llama", "sdpa")
    batch = to_tensors(cache.read_rows([[3], [0], [6]]), packed=False)
    logits = masked_logits(student, batch, keep_only_masked)
    torch.testing.assert_close(logits, alone(student, cache, [3, 0, 6]), atol=1e-5, rtol=0)


def test_flattened_rows_are_what_flash_attention_takes_for_packed(cache) -> None:
    batch = to_tensors(cache.read_rows(PACKED, length=64), packed=True)
    flat = batch["position_ids"][batch["attention_mask"]][None]
    assert _is_packed_sequence(flat, batch_size=1)
    assert not _is_packed_sequence(batch["position_ids"], batch_size=3)  # why rows are flattened
    (starts, _), (longest, _) = prepare_fa_kwargs_from_position_ids(flat)
    lengths = [int(cache.num_tokens[i]) for i in (0, 3, 5, 2, 4, 7)]
    assert starts.diff().tolist() == lengths
    assert longest == max(lengths)


def test_a_batch_without_a_row_that_counts_gives_no_logits_but_keeps_the_graph(cache) -> None:
    student = model("llama", "sdpa")
    batch = to_tensors(cache.read_rows([[3], [0]]), packed=False)
    batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
    logits = masked_logits(student, batch, accepts_logits_to_keep(student))
    assert logits.shape == (0, 61)
    logits.sum().backward()
    assert student.lm_head.weight.grad.abs().max() == 0


class SeesEverything(torch.nn.Module):
    """A model whose packed samples are mixed: a running sum over the row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(61, 8)
        self.head = torch.nn.Linear(8, 61)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> Any:
        hidden = self.embedding(input_ids).cumsum(dim=1)
        return type("Output", (), {"logits": self.head(hidden)})


def test_check_packing() -> None:
    check_packing(model("llama", "sdpa"), flatten=False)
    check_packing(model("qwen3", "eager"), flatten=True)
    with pytest.raises(UserError, match=r"^data.packing: packed samples of a SeesEverything see each other"):
        check_packing(SeesEverything(), flatten=False)
