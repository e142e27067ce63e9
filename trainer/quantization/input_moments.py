"""Calibration: XᵀX of each site's input, over token sequences of a cache.

Only these sums are kept, never activations. A pass over the sequences takes as many sites as fit in a budget; the model
of later passes is the folded one, which computes the same, so the passes see one model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from schemas.errors import UserError
from trainer.quantization.sites import Site

BUDGET = 4 << 30  # bytes of sums at a time


def in_passes(sites: Sequence[Site], budget: int = BUDGET) -> Iterator[list[Site]]:
    """Split the sites, in order, so that the float32 sums of each part fit in ``budget`` bytes (at least one site)."""
    part: list[Site] = []
    for site in sites:
        if part and sum(4 * each.inputs**2 for each in [*part, site]) > budget:
            yield part
            part = []
        part.append(site)
    if part:
        yield part


@torch.no_grad()
def input_grams(
    model: Any, sites: Sequence[Site], sequences: Sequence[np.ndarray], advance: Callable[[], None] = lambda: None
) -> dict[Site, torch.Tensor]:
    """XᵀX of each site's input, float32 [I, I], over all tokens of the sequences (float64 of a float64 model)."""
    device = next(model.parameters()).device
    grams: dict[Site, torch.Tensor] = {}
    with _watched(model, sites, grams):
        for ids_S in sequences:
            model(input_ids=torch.from_numpy(ids_S)[None].to(device), use_cache=False, logits_to_keep=1)
            advance()
    for site, gram_II in grams.items():
        if not gram_II.isfinite().all():
            raise UserError(
                f"{site.readers[0].stored}: its input is not finite on the calibration; the model is damaged"
            )
    return grams


@contextmanager
def _watched(model: Any, sites: Sequence[Site], grams: dict[Site, torch.Tensor]) -> Iterator[None]:
    """Add to ``grams`` whatever the sites' watched modules are given."""
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    for site in sites:
        grams[site] = torch.zeros(site.inputs, site.inputs, dtype=dtype, device=model.device)

    def watcher(site: Site) -> Callable[..., None]:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
            x_NI = (
                expert_input(module, site.expert, *inputs, **named)
                if site.expert is not None
                else _first(inputs, named)
            )
            x_NI = x_NI.flatten(0, -2).to(dtype)
            grams[site].addmm_(x_NI.T, x_NI)

        return add

    handles = [
        model.get_submodule(site.watched).register_forward_pre_hook(watcher(site), with_kwargs=True) for site in sites
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> torch.Tensor:
    return inputs[0] if inputs else named["hidden_states"]


def expert_input(
    experts: Any, expert: int, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What an expert's down projection is given, [N, F]: computed again, since fused experts show it to no hook."""
    del top_k_weights
    routed_ND = hidden_states[(top_k_index == expert).any(dim=-1)]
    gate_NF, up_NF = torch.nn.functional.linear(routed_ND, experts.gate_up_proj[expert]).chunk(2, dim=-1)
    return experts.act_fn(gate_NF) * up_NF
