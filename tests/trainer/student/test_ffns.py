import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from schemas.errors import UserError
from support.ffn_models import tiny_ffn_model
from trainer.student.ffns import find_ffns


def test_every_ffn_is_found() -> None:
    found = find_ffns(tiny_ffn_model("qwen3_5_moe_text"))
    assert [(ffn.layer, ffn.width_key, ffn.n_experts, ffn.width) for ffn in found] == [
        (layer, key, experts, width)
        for layer in (1, 2)
        for key, experts, width in (("moe_intermediate_size", 4, 160), ("shared_expert_intermediate_size", 1, 96))
    ]


def test_dense_layers_of_a_mixture_are_found() -> None:
    found = find_ffns(tiny_ffn_model("qwen3_moe"))
    assert [(ffn.layer, ffn.width_key) for ffn in found] == [(1, "moe_intermediate_size"), (2, "intermediate_size")]


def test_other_architectures_are_refused_by_name() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
    with pytest.raises(
        UserError, match=r"the FFNs of a GPT2LMHeadModel \(gpt2\) cannot be pruned; wanted one of gemma"
    ):
        find_ffns(model)


def test_an_ffn_of_another_width_than_configured_is_refused() -> None:
    model = tiny_ffn_model("llama")
    model.model.layers[1].mlp.down_proj = torch.nn.Linear(96, 32)
    with pytest.raises(
        UserError, match=r"layer 2 of a LlamaForCausalLM has FFNs of other widths .*intermediate_size.*96"
    ):
        find_ffns(model)


def test_a_layer_without_a_known_ffn_is_refused() -> None:
    model = tiny_ffn_model("llama")
    model.model.layers[1].mlp = torch.nn.Identity()
    with pytest.raises(UserError, match=r"layer 2 of a LlamaForCausalLM has no FFN that is known"):
        find_ffns(model)
