"""Packed samples give the results of each sample alone: SDPA, eager, and the flattened Flash Attention layout."""

from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_flash_attention_utils import _is_packed_sequence, prepare_fa_kwargs_from_position_ids

from schemas.errors import UserError
from support.training import SHAPE
from trainer.data.batches import to_tensors
from trainer.student.forward import check_head, check_packing, masked_hidden, output_head


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


def logits_of(student, batch: dict[str, torch.Tensor], flatten: bool = False) -> torch.Tensor:
    return output_head(student).logits(masked_hidden(student, batch, flatten))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("flatten", [False, True])
@torch.no_grad()
def test_packed_logits_equal_those_of_each_sample_alone(cache, kind: str, attention: str, flatten: bool) -> None:
    student = model(kind, attention)
    batch = to_tensors(cache.read_rows(PACKED, length=64), packed=True)
    torch.testing.assert_close(
        logits_of(student, batch, flatten), alone(student, cache, [0, 3, 5, 2, 4, 7]), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_packed_with_sliding_windows(cache) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    student = model("qwen3", "sdpa", **windows)
    assert "sliding_attention" in student.config.layer_types
    batch = to_tensors(cache.read_rows(PACKED), packed=True)
    torch.testing.assert_close(logits_of(student, batch), alone(student, cache, [0, 3, 5, 2, 4, 7]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_padded_logits_equal_those_of_each_sample_alone(cache) -> None:
    student = model("llama", "sdpa")
    batch = to_tensors(cache.read_rows([[3], [0], [6]]), packed=False)
    torch.testing.assert_close(logits_of(student, batch), alone(student, cache, [3, 0, 6]), atol=1e-5, rtol=0)


def test_masked_hidden_leaves_the_model_unchanged(cache) -> None:
    student = model("llama", "sdpa")
    batch = to_tensors(cache.read_rows([[3]]), packed=False)
    before = student(batch["input_ids"]).logits
    masked_hidden(student, batch)
    assert torch.equal(student(batch["input_ids"]).logits, before)


def test_flattened_rows_are_recognised_as_packed_by_flash_attention(cache) -> None:
    batch = to_tensors(cache.read_rows(PACKED, length=64), packed=True)
    flat = batch["position_ids"][batch["attention_mask"]][None]
    assert _is_packed_sequence(flat, batch_size=1)
    assert not _is_packed_sequence(batch["position_ids"], batch_size=3)  # why rows are flattened
    (starts, _), (longest, _) = prepare_fa_kwargs_from_position_ids(flat)
    lengths = [int(cache.num_tokens[i]) for i in (0, 3, 5, 2, 4, 7)]
    assert starts.diff().tolist() == lengths
    assert longest == max(lengths)


def test_an_all_false_loss_mask_gives_no_rows_but_keeps_the_graph(cache) -> None:
    student = model("llama", "sdpa")
    batch = to_tensors(cache.read_rows([[3], [0]]), packed=False)
    batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
    hidden = masked_hidden(student, batch)
    assert hidden.shape == (0, 32)
    hidden.sum().backward()
    assert student.model.embed_tokens.weight.grad.abs().max() == 0


class SeesEverything(torch.nn.Module):
    """A model that mixes packed samples: a running sum over the row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(61, 8)
        self.head = torch.nn.Linear(8, 61)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> None:
        self.head(self.embedding(input_ids).cumsum(dim=1))


def test_packing_is_refused_where_samples_attend_to_each_other() -> None:
    check_packing(model("llama", "sdpa"), flatten=False)
    check_packing(model("qwen3", "eager"), flatten=True)
    with pytest.raises(UserError, match=r"^data.packing: packed samples of a SeesEverything see each other"):
        check_packing(SeesEverything(), flatten=False)


TINY: dict[str, Any] = {**SHAPE, "num_hidden_layers": 1, "head_dim": 8}
HEADS = [
    (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 3.0}),
    (Gemma3TextConfig, Gemma3ForCausalLM, {"final_logit_softcapping": None}),
    (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 4.0}),
    (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}),
    (PhiConfig, PhiForCausalLM, {}),  # its head has a bias
]


@pytest.mark.parametrize(("config", "build", "changes"), HEADS, ids=[build.__name__ for _, build, _ in HEADS])
@torch.no_grad()
def test_logits_are_capped_scaled_and_shifted_as_the_architecture_does(cache, config, build, changes) -> None:
    torch.manual_seed(0)
    student = build(config(**{**TINY, "pad_token_id": 0, **changes})).eval()
    student.get_output_embeddings().weight.mul_(30)
    if student.get_output_embeddings().bias is not None:
        student.get_output_embeddings().bias.normal_()
    batch = to_tensors(cache.read_rows([[3], [0]]), packed=False)
    expected = student(batch["input_ids"]).logits[batch["loss_mask"]]
    torch.testing.assert_close(logits_of(student, batch), expected, atol=1e-4, rtol=0)
    check_head(student)


class ScalesInItsOwnWay(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.1
        return output


def test_unknown_heads_are_refused() -> None:
    with pytest.raises(UserError, match=r"student: a ScalesInItsOwnWay makes its logits in an unknown way"):
        check_head(ScalesInItsOwnWay(LlamaConfig(**SHAPE)))
    student = model("llama", "sdpa")
    student.lm_head = torch.nn.Sequential(student.lm_head)
    with pytest.raises(UserError, match=r"output head of a LlamaForCausalLM is a Sequential, wanted a Linear layer"):
        output_head(student)
