"""The router balance loss of a batch, padded or packed, is transformers' own over the samples one by one."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from schemas.errors import UserError
from support.logged import read_metrics
from support.ranks import run
from trainer.data.batches import to_tensors
from trainer.distiller import distill
from trainer.student.build import load_student
from trainer.student.forward import flattens, hidden_and_outputs
from trainer.student.router_balance import router_balance
from trainer.student.token_layout import token_layout

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
}
QWEN = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
ROWS = {False: [[0], [3], [7]], True: [[0, 3, 5], [7, 2]]}


def model(kind: str, attention: str = "sdpa", **changes: Any) -> Any:
    torch.manual_seed(0)
    if kind == "qwen3_moe":
        build, config = Qwen3MoeForCausalLM, Qwen3MoeConfig(**SHAPE, **QWEN, router_aux_loss_coef=0.25, **changes)
    else:
        config = MixtralConfig(**SHAPE, num_local_experts=4, router_aux_loss_coef=0.25, **changes)
        build = MixtralForCausalLM
    student = build._from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(4)
    return student


def gate_gradient(student: Any) -> torch.Tensor:
    return next(weight.grad for name, weight in student.named_parameters() if "gate.weight" in name)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("packed", "attention"), [(False, "sdpa"), (True, "sdpa"), (True, "varlen")])
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_value_and_gradient(cache, kind: str, packed: bool, attention: str, checkpointing: bool) -> None:
    import trainer.student.varlen_attention  # noqa: F401

    reference = model(kind)
    ids = [torch.from_numpy(cache.samples[sample]["input_ids"])[None] for row in ROWS[packed] for sample in row]
    layers = zip(*(reference(one, output_router_logits=True).router_logits for one in ids), strict=True)
    experts = reference.num_experts
    wanted = load_balancing_loss_func(tuple(torch.cat(layer) for layer in layers), experts, 2)
    wanted.backward()

    student = model(kind, attention)
    if checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
        student.train()
    batch: dict[str, Any] = to_tensors(cache.read_rows(ROWS[packed], length=60), packed)
    batch["layout"] = token_layout(batch, flattens(student))
    balance = router_balance(student)
    assert balance is not None
    assert balance.weight == 0.25
    _, outputs = hidden_and_outputs(student, batch, output_router_logits=True)
    total = balance.total(outputs, batch)
    tokens = sum(one.numel() for one in ids)
    torch.testing.assert_close(total / tokens, wanted, rtol=1e-5, atol=0)
    (total / tokens).backward()
    torch.testing.assert_close(gate_gradient(student), gate_gradient(reference), rtol=1e-4, atol=1e-6)


def test_it_is_part_of_the_loss_and_logged(make_config, tmp_path: Path) -> None:
    model("qwen3_moe").save_pretrained(tmp_path / "student")
    config = make_config(student={"checkpoint": str(tmp_path / "student")}, loop={"max_steps": 3, "save_every": 9})
    distill(config)
    for record in read_metrics(config.output, "loss"):
        assert record["router_balance"] > 1.9, "balanced experts give the number of experts per token"
        assert record["router_balance_weight"] == pytest.approx(0.25)
        assert record["router_balance_weighted"] == pytest.approx(0.25 * record["router_balance"])
        assert record["loss"] == pytest.approx(record["tla_weighted"] + record["router_balance_weighted"])
    assert load_student(Path(config.output) / "final", config.student).config.router_aux_loss_coef == 0.25
    for parallel in ("ddp", "fsdp"):  # two ranks take the two micro-batches of a step
        loop = {**config.loop.model_dump(), "gradient_accumulation": 1, "parallel": parallel}
        ranked = make_config(
            student={"checkpoint": str(tmp_path / "student")}, loop=loop, output=str(tmp_path / parallel)
        )
        run(ranked, 2)
        for one, two in zip(read_metrics(ranked.output, "loss"), read_metrics(config.output, "loss"), strict=True):
            assert one["router_balance"] == pytest.approx(two["router_balance"], rel=1e-3)


def test_not_asked_for_without_experts_or_weight(caplog: pytest.LogCaptureFixture) -> None:
    assert router_balance(LlamaForCausalLM(LlamaConfig(**SHAPE))) is None
    without = model("qwen3_moe")
    without.config.router_aux_loss_coef = 0.0
    assert router_balance(without) is None
    assert not caplog.records


def test_a_student_without_router_logits_is_refused() -> None:
    balance = router_balance(model("mixtral"))
    assert balance is not None
    with pytest.raises(UserError, match=r"set router_aux_loss_coef to 0 in its config\.json"):
        balance.total(SimpleNamespace(router_logits=None), {})


def test_an_architecture_without_one_is_warned_about_by_name(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "kv_lora_rank": 8}
    sizes |= {"q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    student = DeepseekV3ForCausalLM(DeepseekV3Config(**{**SHAPE, "num_key_value_heads": 4}, **sizes))
    with caplog.at_level(logging.WARNING):
        assert router_balance(student) is None
    assert "no router balance loss for a DeepseekV3ForCausalLM" in caplog.text
