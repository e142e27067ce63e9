"""Where an adapter goes, what is trained of a student with one, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3MoeConfig

from schemas.errors import UserError
from schemas.train_config import AdapterConfig
from support.folding_families import FAMILIES
from support.training import SHAPE
from trainer.adapters import lora_layers
from trainer.adapters.lora_layers import add_lora, check_packages, load_frozen, trained_parameters
from trainer.student.forward import masked_hidden


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def test_a_fresh_adapter_changes_nothing_and_is_all_that_is_trained() -> None:
    one, two = (llama() for _ in range(2))
    ids = torch.arange(3, 33)[None]
    batch = {"input_ids": ids, "loss_mask": torch.ones_like(ids, dtype=torch.bool)}
    before = masked_hidden(one, batch)
    state = torch.random.get_rng_state()
    for model in (one, two):
        add_lora(model, AdapterConfig(r=3, targets=["v_proj", "down_proj"]), seed=5)
    assert torch.equal(torch.random.get_rng_state(), state), "the order of random numbers is that of other students"
    assert torch.equal(masked_hidden(one, batch), before)
    trained, same = trained_parameters(one), trained_parameters(two)
    assert len(trained) == 2 * 2 * 3
    assert all(torch.equal(same[name], weight) for name, weight in trained.items()), "the seed decides"
    add_lora(other := llama(), AdapterConfig(r=3, targets=["v_proj"]), seed=6)
    assert any(not torch.equal(trained[name], weight) for name, weight in trained_parameters(other).items())


def test_an_adapter_is_float32_on_a_base_of_16_bits() -> None:
    model = llama().bfloat16()
    add_lora(model, AdapterConfig(), seed=0)
    assert {weight.dtype for weight in trained_parameters(model).values()} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_weights_of_4_bits_stay_as_they_are_when_the_student_is_validated(make_config: Any) -> None:
    config = make_config(student={"adapter": {"base_bits": 4}})
    student = load_frozen(Path(config.student.checkpoint), config, bf16=False)
    layer = student.model.layers[0].mlp.up_proj
    before, scales = layer.weight.data.clone(), layer.weight.quant_state.absmax.clone()
    student.eval()
    with torch.no_grad():
        student(input_ids=torch.arange(3, 33)[None])
    assert layer.weight.dtype == torch.uint8
    assert torch.equal(layer.weight.data, before)
    assert torch.equal(layer.weight.quant_state.absmax, scales)


def test_experts_in_one_tensor_are_refused_and_attention_beside_them_is_not() -> None:
    config = Qwen3MoeConfig.from_dict(FAMILIES["Qwen3-MoE"]().to_dict())
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=r"student\.adapter\.targets: the experts of a Qwen3Moe.* are one tensor"):
        add_lora(model, AdapterConfig(), seed=0)
    add_lora(model, AdapterConfig(targets=["q_proj", "o_proj"]), seed=0)
    assert all(".self_attn." in name for name in trained_parameters(model))


def test_targets_that_a_student_does_not_have_are_refused_with_those_it_has() -> None:
    with pytest.raises(UserError, match=r"a LlamaForCausalLM has no linear layer out_proj; it has down_proj, gate_"):
        add_lora(llama(), AdapterConfig(targets=["q_proj", "out_proj"]), seed=0)


@pytest.mark.parametrize(("missing", "bits"), [("peft", None), ("bitsandbytes", 4)])
def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch: Any, missing: str, bits: Any) -> None:
    monkeypatch.setattr(lora_layers, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(UserError, match=rf"needs {missing}, .* pip install 'offline-distillation\[adapters\]'"):
        check_packages(AdapterConfig(base_bits=bits))
    if missing == "bitsandbytes":
        check_packages(AdapterConfig())
