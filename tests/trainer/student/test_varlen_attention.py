"""``varlen`` over packed rows against SDPA with the block mask: values, gradients, grouped heads, sliding windows."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.attention.varlen import varlen_attn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe

from schemas.errors import UserError
from support.flash_stand_in import FlashStandIn
from support.training import SHAPE
from teacher_cache.attention_implementation import VARLEN, check_attention
from trainer.data.batches import to_tensors
from trainer.student.forward import check_head, check_packing, masked_hidden
from trainer.student.recorder import Recorder, Wanted
from trainer.student.token_layout import token_layout
from trainer.student.varlen_attention import attend, varlen_reference

PACKED = [[0, 3, 5], [2, 4], [7]]
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 10}
KINDS = {
    "latent": (
        DeepseekV3ForCausalLM,
        DeepseekV3Config(**{**SHAPE, "num_key_value_heads": 4}, **LATENT, first_k_dense_replace=9),
    ),
    "grouped": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=12)),
    "as many": (LlamaForCausalLM, LlamaConfig(**{**SHAPE, "num_key_value_heads": 4})),
    "windows": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=8, **WINDOWS)),
}


def student(kind: str, attention: str) -> Any:
    torch.manual_seed(0)
    build, config = KINDS[kind]
    model = build._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(6)
    return model


def hidden_and_gradients(model: Any, batch: dict[str, Any], flatten: bool) -> tuple[torch.Tensor, ...]:
    hidden = masked_hidden(model, batch, flatten)
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return (hidden.detach(), *(weight.grad for name, weight in model.named_parameters() if "lm_head" not in name))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_values_and_gradients_are_those_of_sdpa(cache, kind: str, packed: bool, checkpointing: bool) -> None:
    batch = to_tensors(cache.read_rows(PACKED if packed else [[0], [3], [7]], length=64), packed=packed)
    ours, theirs = student(kind, VARLEN), student(kind, "sdpa")
    if checkpointing:
        ours.gradient_checkpointing_enable({"use_reentrant": False})
        ours.train()
    found, wanted = hidden_and_gradients(ours, batch, True), hidden_and_gradients(theirs, batch, False)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5 * float(two.abs().max()), rtol=0)


@torch.no_grad()
def test_features_are_recorded_as_with_sdpa(cache) -> None:
    batch = to_tensors(cache.read_rows([[0, 3, 5]]), packed=True)
    wanted = Wanted(hidden_layers=[2], attention_layers=[3], ffn=True)
    seen = []
    for attention in (VARLEN, "sdpa"):
        model = student("grouped", attention)
        recorder = Recorder(model, wanted)
        with recorder.recording() as recorded:
            masked_hidden(model, batch, flatten=attention == VARLEN)
        seen.append(recorded)
    for read in (lambda r: r.hidden[2], lambda r: r.query_key[3].key_RGLD, lambda r: r.ffn_abs_RL):
        torch.testing.assert_close(read(seen[0]), read(seen[1]), atol=1e-4, rtol=0)


def test_checks_pass_and_leaks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = student("windows", VARLEN).eval()
    check_head(model)
    check_packing(model, flatten=True)
    monkeypatch.setattr(
        "trainer.student.token_layout.TokenLayout.inputs", lambda self, batch: {"input_ids": batch["input_ids"]}
    )
    with pytest.raises(UserError, match="packed samples of a Qwen3ForCausalLM see each other"):
        check_packing(model, flatten=True)


def test_bounds_and_the_longest_sample_are_those_of_the_batch(cache) -> None:
    packed = to_tensors(cache.read_rows(PACKED, length=64), packed=True)
    layout = token_layout(packed, flatten=True)
    lengths = [int(cache.num_tokens[sample]) for row in PACKED for sample in row]
    assert layout.bounds.dtype == torch.int32
    assert layout.bounds.diff().tolist() == lengths
    assert layout.longest == max(lengths)
    assert type(layout.longest) is int


def test_a_packed_batch_whose_samples_were_all_skipped(cache) -> None:
    batch = {name: torch.zeros_like(part) for name, part in to_tensors(cache.read_rows([[0]]), packed=True).items()}
    assert masked_hidden(student("grouped", VARLEN), batch, flatten=True).shape == (0, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_no_layer_needs_a_value_on_the_host(cache, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of GPUs over tensors without values, forward and backward: asking for a value raises."""
    monkeypatch.setattr("trainer.student.varlen_attention.varlen_reference", varlen_attn)
    batch = to_tensors(cache.read_rows(PACKED, length=64), packed=True)
    batch["layout"] = token_layout(batch, flatten=True)
    rows = len(batch["layout"].loss_N)
    with FakeTensorMode() as mode:
        parts = {name: mode.from_tensor(part) for name, part in batch.items() if name != "layout"}
        layout = {name: mode.from_tensor(part) for name, part in batch["layout"]._asdict().items() if name != "longest"}
        model = student(kind, VARLEN)
        hidden = masked_hidden(model, {**parts, "layout": batch["layout"]._replace(**layout)})
        assert hidden.shape == (rows, 32)
        hidden.sum().backward()
        with pytest.raises(DataDependentOutputException):
            hidden.sum().item()


def test_flash_attention_gets_bounds_and_a_number(cache, request: pytest.FixtureRequest) -> None:
    stand_in = FlashStandIn(any_dtype=True)
    stand_in()
    request.addfinalizer(stand_in.undo)
    model = student("grouped", "sdpa")
    model.config._attn_implementation = "flash_attention_2"
    batch = to_tensors(cache.read_rows(PACKED, length=64), packed=True)
    found = hidden_and_gradients(model, batch, True)
    wanted = hidden_and_gradients(student("grouped", "sdpa"), batch, False)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5 * float(two.abs().max()), rtol=0)
    assert stand_in.lengths == {"int"}


def test_under_autocast_q_and_k_are_16_bit(cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of q and k, as Qwen3 has them, return float32."""
    dtypes = set()

    def watched(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any
    ) -> torch.Tensor:
        dtypes.update(part.dtype for part in (query, key, value))
        return varlen_reference(query, key, value, *args, **options)

    monkeypatch.setattr("trainer.student.varlen_attention.varlen_reference", watched)
    batch = to_tensors(cache.read_rows(PACKED), packed=True)
    with torch.autocast("cpu", torch.bfloat16):
        masked_hidden(student("grouped", VARLEN), batch, flatten=True)
    assert dtypes == {torch.bfloat16}


def hybrid() -> Any:
    torch.manual_seed(0)
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = Qwen3_5MoeTextConfig(
        **{**SHAPE, "num_hidden_layers": 4}, **linear, **experts, head_dim=8, shared_expert_intermediate_size=16
    )
    assert set(config.layer_types) == {"linear_attention", "full_attention"}
    return Qwen3_5MoeForCausalLM._from_config(config, attn_implementation=VARLEN).eval()


def test_recurrent_layers_are_packed_with_kernels_that_know_samples(cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for flash-linear-attention and causal-conv1d: the torch code of transformers, sample by sample."""
    convolve, recur = modeling_qwen3_5_moe.causal_conv1d_fn, modeling_qwen3_5_moe.torch_chunk_gated_delta_rule

    def convolve_samples(hidden: torch.Tensor, *args: Any, seq_idx: Any = None, **options: Any) -> torch.Tensor:
        counts = [hidden.shape[2]] if seq_idx is None else seq_idx[0].unique_consecutive(return_counts=True)[1].tolist()
        return torch.cat([convolve(part, *args, **options) for part in hidden.split(counts, dim=2)], dim=2)

    def recur_samples(*parts: torch.Tensor, g: Any, beta: Any, cu_seqlens: Any = None, **options: Any) -> Any:
        counts = [g.shape[1]] if cu_seqlens is None else cu_seqlens.diff().tolist()
        split = zip(*(part.split(counts, dim=1) for part in (*parts, g, beta)), strict=True)
        found = [recur(*qkv, g=decay, beta=rate, **options)[0] for *qkv, decay, rate in split]
        return torch.cat(found, dim=1), None

    model = hybrid()
    with pytest.raises(
        UserError, match=r"see each other.* or, on a GPU, install flash-linear-attention and causal-conv1d"
    ):
        check_packing(model, flatten=True)
    monkeypatch.setattr(modeling_qwen3_5_moe, "causal_conv1d_fn", convolve_samples)
    monkeypatch.setattr(modeling_qwen3_5_moe, "torch_chunk_gated_delta_rule", recur_samples)
    check_packing(model, flatten=True)
    packed, alone = ([[0, 3, 5], [2, 4]], [[0], [3], [5], [2], [4]])
    found = masked_hidden(model, to_tensors(cache.read_rows(packed, length=64), packed=True), flatten=True)
    wanted = [masked_hidden(model, to_tensors(cache.read_rows([one]), packed=False)) for one in alone]
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"softcap": 30.0}, "softcap"),
        ({"dropout": 0.1}, "attention dropout"),
        ({"is_causal": False}, "attention that is not causal"),
    ],
)
def test_what_the_kernels_have_not_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    part = torch.zeros(1, 4, 3, 8)
    with pytest.raises(UserError, match=rf"^student.attention: varlen does not support {named}, which Linear has"):
        attend(torch.nn.Linear(1, 1), part, part, part, None, **options)


def test_configurations_that_it_would_compute_otherwise_are_refused() -> None:
    from transformers import Gemma2Config, GptOssConfig

    for config, what in ((Gemma2Config(), "soft cap"), (GptOssConfig(), "as the model class defines it")):
        with pytest.raises(UserError, match=f"^key: varlen drops .*{what}"):
            check_attention(config, VARLEN, "key")
    with pytest.raises(UserError, match=r"^key: varlen drops attention dropout \(attention_dropout 0.1\)"):
        check_attention(LlamaConfig(**SHAPE, attention_dropout=0.1), VARLEN, "key")
    with pytest.raises(UserError, match=r"attention heads of size 512 \(at most 256\)"):
        check_attention(LlamaConfig(**SHAPE, head_dim=512), VARLEN, "key")
