"""Calibration and search: sums of what layers are really given, the best of all candidates, one result in passes."""

from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import UserError
from support.folding_families import FAMILIES, random_model
from trainer.quantization import prepass
from trainer.quantization.grid import Grid
from trainer.quantization.input_moments import in_passes, input_grams
from trainer.quantization.scale_search import output_error, search
from trainer.quantization.sites import Site, find_sites

GRID = Grid(3, 32)
SEQUENCES = [np.arange(1, 60), np.arange(90, 120)]


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_are_of_what_the_layers_are_given(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(family, torch.float64)
    given: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
    linear = torch.nn.functional.linear

    def recording(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        flat, key = x.detach().flatten(0, -2), (weight.data_ptr(), tuple(weight.shape))
        given[key] = given.get(key, 0) + flat.T @ flat
        return linear(x, weight, bias)

    sites = find_sites(model, GRID)
    with torch.no_grad():
        monkeypatch.setattr(torch.nn.functional, "linear", recording)
        for ids in SEQUENCES:
            model(torch.from_numpy(ids)[None])
    monkeypatch.undo()
    grams = input_grams(model, sites, SEQUENCES)
    assert set(grams) == set(sites)
    for site, gram in grams.items():
        weight = site.readers[0].of(model)
        if site.readers[0].half == 0:  # of all tokens, while an expert reads those routed to it: the router reads all
            weight = model.get_parameter(site.corrected[0])
        torch.testing.assert_close(gram, given[weight.data_ptr(), tuple(weight.shape)], rtol=1e-6, atol=1e-6)


def test_passes_keep_the_order_and_the_budget() -> None:
    sites = find_sites(random_model("Llama"), GRID)  # inputs 64, 64, 64, 96, twice
    parts = list(in_passes(sites, budget=4 * 3 * 64 * 64))
    assert [site for part in parts for site in part] == sites
    assert [[site.inputs for site in part] for part in parts] == [[64, 64, 64], [96], [64, 64, 64], [96]]


def test_several_passes_find_what_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    calls: list[tuple[int, int]] = []
    for budget in (1 << 30, 1):
        model = random_model("Qwen2")
        monkeypatch.setattr(prepass, "in_passes", lambda sites, budget=budget: in_passes(sites, budget))
        calls.clear()
        prepass.fold_scales(model, find_sites(model, GRID), GRID, SEQUENCES, lambda *done: calls.append(done))
        assert calls[-1][0] == calls[-1][1] == len(calls)
        found.append(model.state_dict())
    assert len(calls) == 8 * len(SEQUENCES)
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-3, atol=1e-4)


def test_the_search_finds_the_least_error_of_its_candidates() -> None:
    torch.manual_seed(0)
    site = Site("x", "norm", (), channels=64)
    weights = [torch.randn(48, 64, dtype=torch.float64), torch.randn(16, 64, dtype=torch.float64)]
    inputs = torch.randn(500, 64, dtype=torch.float64) * (3 * torch.rand(64, dtype=torch.float64)).exp()
    gram = inputs.T @ inputs
    found = search(weights, gram, GRID, site)
    rms = gram.diagonal().sqrt()
    energy = sum(output_error(weight, gram) for weight in weights)

    def error(alpha: float) -> float:
        scales = (rms / rms.log().mean().exp()) ** alpha
        rounded = [GRID.fake_quantise(w * scales, GRID.scales(w * scales)) / scales for w in weights]
        outputs = [inputs @ (r - w).T for r, w in zip(rounded, weights, strict=True)]
        return float(sum(each.square().sum() for each in outputs) / energy)

    errors = {step / 20: error(step / 20) for step in range(21)}
    assert found.error == pytest.approx(min(errors.values()))
    assert errors[found.alpha] == min(errors.values())
    assert found.error < 0.9 * found.error_unscaled
    assert found.error_unscaled == pytest.approx(errors[0.0])


def test_a_layer_that_folding_does_not_suit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("Llama")
    monkeypatch.setattr(prepass, "fold", lambda model, site, scales: site.readers[0].of(model).mul_(2))
    with pytest.raises(UserError, match="MODEL: folding scales changes the log-probabilities of a LlamaForCausalLM by"):
        prepass.fold_scales(model, find_sites(model, GRID), GRID, SEQUENCES)


def test_experts_without_a_token_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("Qwen3-MoE")
    prepass.fold_scales(model, find_sites(model, GRID), GRID, [np.arange(1, 2)])
    assert "of 8 experts read no token of the calibration" in caplog.text
    assert all(weight.isfinite().all() for weight in model.parameters())
