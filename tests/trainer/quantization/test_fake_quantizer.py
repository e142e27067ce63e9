"""Layers under quantisation, against a model whose weights were replaced, in float64."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.folding_families import FAMILIES, random_model
from trainer.quantization.fake_quantizer import SMALLEST, FakeQuantizer, as_used, quantised, scale_gradient
from trainer.quantization.grid import BITS, Grid
from trainer.quantization.prepass import parameters_of
from trainer.quantization.sites import Site, find_sites
from trainer.student.parallel import compile_layers

GRID = Grid(3, 32)
IDS = torch.arange(1, 41).view(2, 20)


def scales_of(model: Any, sites: list[Site]) -> dict[str, torch.Tensor]:
    by_name = {
        reader.stored: GRID.scales(reader.of(model)).to(torch.bfloat16) for site in sites for reader in site.readers
    }
    return parameters_of(sites, by_name)


def loss_of(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits.square().mean()


def pair(family: str, dtype: torch.dtype) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A model under quantisation, one whose weights were replaced by the same rounded ones, and the scales."""
    model = random_model(family, dtype)
    scales = scales_of(model, find_sites(model, GRID))
    replaced = copy.deepcopy(model)
    with torch.no_grad():
        for name, scales_OG in scales.items():
            weight = replaced.get_parameter(name)
            weight.copy_(GRID.fake_quantise(weight, scales_OG))
    FakeQuantizer(model, scales, GRID)
    return model, replaced, scales


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_replaced_weights(family: str) -> None:
    model, replaced, scales = pair(family, torch.float64)
    for each in (model, replaced):
        loss_of(each).backward()
    assert loss_of(model).item() == loss_of(replaced).item()
    for name, wanted in replaced.named_parameters():
        found = model.get_parameter(name)
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-6, atol=1e-12, msg=name)
        assert torch.equal(found, wanted) != (name in scales), name  # and the parameters are what they were


@pytest.mark.parametrize("family", ["Qwen3", "Qwen3-MoE"])
def test_checkpointed_layers_compute_the_same(family: str) -> None:
    model, replaced, _ = pair(family, torch.float32)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for each in (model, replaced):
        loss_of(each).backward()
    for name, wanted in replaced.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, wanted.grad, rtol=1e-5, atol=1e-9)


def test_compiled_layers_compute_the_same() -> None:
    """A compiler that saw the rounding to bfloat16 would leave it out."""
    torch._dynamo.reset()
    model, replaced, _ = pair("Llama", torch.float32)
    compile_layers(model)
    for each in (model, replaced):
        loss_of(each).backward()
    assert loss_of(model).item() == pytest.approx(loss_of(replaced).item(), rel=1e-5)
    for name, wanted in replaced.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, wanted.grad, rtol=1e-4, atol=1e-5)


def test_names_and_modules_are_as_before_when_it_is_removed_and_after_an_error() -> None:
    model = random_model("Qwen3-MoE")
    names, before = list(model.state_dict()), loss_of(model)
    sites = find_sites(model, GRID)
    scales = scales_of(model, sites)
    quantizer = FakeQuantizer(model, scales, GRID)
    assert list(model.state_dict()) == names
    with pytest.raises(RuntimeError):
        model.model.layers[0].self_attn.q_proj(torch.zeros(1, 3))
    assert "weight" not in vars(model.model.layers[0].self_attn.q_proj)
    assert loss_of(model) != before
    kept = quantizer.remove(model)
    assert loss_of(model) == before
    assert all(torch.equal(kept[name], scales[name]) for name in scales)
    assert not [name for name, _ in model.named_buffers() if name.endswith("_scale")]


def test_autocast_rounds_the_weights_to_bfloat16_first() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scales = GRID.scales(weight.detach()).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantised(weight, scales, GRID)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, GRID.fake_quantise(weight.detach().to(torch.bfloat16), scales))
    found.float().sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


@given(bits=st.sampled_from(BITS), seed=st.integers(0, 99), width=st.floats(0.3, 3))
def test_the_gradient_of_a_scale_is_that_of_straight_through_rounding(bits: int, seed: int, width: float) -> None:
    """Against autograd through round(x) = x + (round(x) - x) without gradient, and clamp, in float64."""
    grid, generator = Grid(bits, 32), torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 64, dtype=torch.float64, generator=generator)
    scales = (grid.scales(weight) * width).to(torch.bfloat16)
    gradient = torch.randn(3, 64, dtype=torch.float64, generator=generator)
    learned = scales.double().requires_grad_()
    ratios = weight.view(3, 2, 32) / learned[..., None]
    inside = ratios.clamp(grid.lowest, -grid.lowest - 1)
    rounded = inside + (inside.round() - inside).detach()
    ((rounded * learned[..., None]).flatten(1) * gradient).sum().backward()
    found = scale_gradient(gradient, weight, scales.double(), grid)
    assert learned.grad is not None
    wanted = learned.grad / math.sqrt(32 * (1 << (bits - 1)))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_learned_scales_are_parameters_that_get_this_gradient() -> None:
    model = random_model("Llama", torch.float64)
    scales = scales_of(model, find_sites(model, GRID))
    quantizer = FakeQuantizer(model, scales, GRID, learned=True)
    loss_of(model).backward()
    name = "model.layers.1.mlp.up_proj.weight"
    parameter, scale = model.get_parameter(name), model.get_parameter(f"{name}_scale")
    assert scale.dtype == torch.float32
    wanted = scale_gradient(parameter.grad, parameter.detach(), scale.detach(), GRID)
    torch.testing.assert_close(scale.grad, wanted)
    assert scale.grad.abs().max() > 0
    with torch.no_grad():
        scale.mul_(1.5)
    assert torch.equal(quantizer.remove(model)[name], (scales[name].float() * 1.5).to(torch.bfloat16))


def test_a_scale_that_reaches_zero_gives_finite_weights_and_gradients() -> None:
    weight = torch.randn(2, 32, requires_grad=True)
    scale = torch.zeros(2, 1, requires_grad=True)
    found = quantised(weight, scale, GRID)
    found.sum().backward()
    assert found.isfinite().all()
    assert scale.grad is not None
    assert scale.grad.isfinite().all()
    assert as_used(torch.tensor([0.0, -1e-45, 1.0])).tolist() == [SMALLEST, -SMALLEST, 1.0]
