"""Rounded inputs, against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import UserError
from schemas.train_config import ActivationsConfig
from support.folding_families import random_model
from trainer.quantization.fake_activations import clipped, clips_of, per_token, round_activations
from trainer.quantization.grid import Grid
from trainer.quantization.sites import find_sites

GRID = Grid(3, 32)


def values(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(4, 32, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 99), bits=st.sampled_from([4, 8]))
def test_a_token_is_rounded_by_its_largest_magnitude(seed: int, bits: int) -> None:
    x = values(seed).requires_grad_()
    found = per_token(x, bits)
    step = x.detach().abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((found - x).abs() <= step * 0.5001).all()
    integers = found / step
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-5)
    found.sum().backward()
    assert x.grad is not None
    assert (x.grad == 1).all()


@given(seed=st.integers(0, 99), levels=st.sampled_from([None, 3, 5, 7, 255]), clip=st.floats(0.1, 3))
def test_beyond_the_clip_nothing_moves_and_there_is_no_gradient(seed: int, levels: int | None, clip: float) -> None:
    x = values(seed).requires_grad_()
    found = clipped(x, clip, levels)
    assert found.abs().max() <= clip * (1 + 1e-6)
    inside = x.detach().abs() <= clip
    found.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, inside.double())
    if levels is None:
        assert torch.equal(found[inside], x[inside])
    else:
        step = 2 * clip / (levels - 1)
        assert len(found.detach().div(step).round().unique()) <= levels
        assert ((found - x).abs()[inside] <= step * 0.5001).all()


def test_the_clip_is_the_percentile_of_the_calibration() -> None:
    model = random_model("Llama")
    sites = find_sites(model, GRID)
    seen: list[torch.Tensor] = []
    name = "model.layers.1.mlp.down_proj"
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    sequences = [np.arange(1, 30), np.arange(30, 45)]
    clips = clips_of(model, sites, sequences, 99)
    handle.remove()
    inputs = torch.cat([each.flatten() for each in seen]).abs()
    assert clips[name] == pytest.approx(float(inputs.quantile(0.99)), rel=0.02)
    assert float((inputs > clips[name]).float().mean()) == pytest.approx(0.01, abs=2e-3)
    assert set(clips) == {reader.parameter.removesuffix(".weight") for site in sites for reader in site.readers}


def test_only_inputs_of_quantised_layers_are_rounded_and_only_until_it_is_undone() -> None:
    model = random_model("Qwen3")
    ids = torch.arange(1, 20)[None]
    before = model(ids).logits
    undo = round_activations(model, find_sites(model, GRID, ("down_proj",)), ActivationsConfig(bits=8), {})
    hooked = [name for name, module in model.named_modules() if module._forward_pre_hooks]
    assert hooked == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    after = model(ids).logits
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, before, rtol=0.2, atol=0.5)
    undo()
    assert torch.equal(model(ids).logits, before)


def test_fused_experts_are_refused() -> None:
    model = random_model("Qwen3-MoE")
    with pytest.raises(UserError, match=r"quantization\.activations: .* inside fused experts cannot be rounded"):
        round_activations(model, find_sites(model, GRID), ActivationsConfig(bits=8), {})
