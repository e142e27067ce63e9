"""Folding leaves the model's function alone, in float64, for every kind of layer it knows, and refuses the others."""

import pytest
import torch
import transformers as hf

from schemas.errors import UserError
from support.folding_families import FAMILIES, SHAPE, random_model
from trainer.quantization.folding import fold, norm_offset, pooled, spread
from trainer.quantization.grid import Grid
from trainer.quantization.sites import Site, find_sites

GRID = Grid(3, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_computes_the_same(family: str) -> None:
    model = random_model(family, torch.float64)
    ids = torch.arange(1, 40)[None]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # norms compute in float32
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        wanted = model(ids).logits
        for site in find_sites(model, GRID):
            if site.producer is not None:
                fold(model, site, torch.rand(site.heads * site.channels, dtype=torch.float64) * 4 + 0.1)
        found = model(ids).logits
    assert (found - wanted).abs().max() < 1e-9 * wanted.abs().max()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    kept = ("embed", "lm_head", "model.norm", "q_norm", "k_norm", "post_feedforward")
    assert not any(part in name for name in changed for part in kept)
    reads = ("_proj.weight", "experts.down_proj", "gate_up_proj", "qkv.weight", "in_proj_a.weight", "gate.weight")
    unchanged = {name for name in before if name.endswith(reads)} - changed
    assert unchanged == {name for name in before if name.endswith("linear_attn.out_proj.weight")}


def test_values_of_a_value_head_are_spread_over_its_query_heads() -> None:
    site = Site("o", "v", (), channels=2, heads=2, repeats=3)
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spread(values, site).tolist() == [1, 2] * 3 + [3, 4] * 3
    assert pooled(spread(values, site), site).tolist() == values.tolist()


def test_norms_are_told_apart_by_running_them() -> None:
    gemma = random_model("Gemma-3").model.layers[0].input_layernorm
    llama = random_model("Llama").model.layers[0].input_layernorm
    assert (norm_offset(llama, "n"), norm_offset(gemma, "n")) == (0.0, 1.0)
    with pytest.raises(UserError, match=r"^layers\.0: a LayerNorm is no RMS norm"):
        norm_offset(torch.nn.LayerNorm(8), "layers.0")


def test_refusals_name_the_layer_and_what_to_use() -> None:
    model = random_model("Llama")
    with pytest.raises(UserError, match=r"--group-size 128: does not divide the 64 inputs of .*q_proj.weight; use 32$"):
        find_sites(model, Grid(3, 128))
    with pytest.raises(UserError, match="--target lm_head: no such linear layer; choose from q_proj"):
        find_sites(model, GRID, ("lm_head",))
    with pytest.raises(UserError, match="--target q_proj, v_proj: q_proj, k_proj, v_proj read one input"):
        find_sites(model, GRID, ("q_proj", "v_proj"))
    chosen = find_sites(model, GRID, ("down_proj",))
    assert [site.readers[0].stored for site in chosen] == [f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)]
    with pytest.raises(UserError, match="--target out_proj: a LlamaForCausalLM has no such linear layer"):
        find_sites(model, GRID, ("out_proj",))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (hf.GptOssConfig(**SHAPE, num_local_experts=4), "a GptOssDecoderLayer has experts with gate_up_proj, gate_up_"),
        (hf.Phi3Config(**SHAPE), "a Phi3DecoderLayer lacks self_attn.v_proj; quantisation knows"),
        (hf.Gemma3nTextConfig(**SHAPE, num_kv_shared_layers=0), "a Gemma3nTextDecoderLayer has "),
        (hf.Olmo2Config(**SHAPE), "a Olmo2DecoderLayer lacks input_layernorm"),
    ],
)
def test_layers_of_other_kinds_are_refused(config: hf.PreTrainedConfig, message: str) -> None:
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=message):
        find_sites(model, GRID)
