"""The pre-pass: find activation-aware scales from a calibration and fold them into the model, which computes the same.

What is left to do to quantise the folded model is to round it: its grid and sites say how. Training under quantisation
starts from here too.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import torch

from schemas.errors import UserError
from trainer.quantization.folding import fold
from trainer.quantization.grid import Grid
from trainer.quantization.input_moments import in_passes, input_grams
from trainer.quantization.scale_search import Found, search
from trainer.quantization.scales_file import ScalesRecord
from trainer.quantization.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
PROMPT = 32  # tokens that a check generates from
MAX_TOKENS = 2048  # of a calibration sequence
MAX_CHANGE = 0.01  # nats: of log-probabilities by folding in float32; wrong folding gives far more


def fold_scales(
    model: "PreTrainedModel",
    sites: Sequence[Site],
    grid: Grid,
    sequences: Sequence[np.ndarray],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, torch.Tensor], ScalesRecord]:
    """Search the activation-aware scales of all sites and fold them into ``model`` (float32), in place.

    sequences: token ids, int64 [S]. advance: (sequences done, sequences of all passes). Returns the grid's scales of
    the folded weights, bfloat16 [O, G] by the weights' names in files, and a record. Raises UserError if the model does
    not compute the same afterwards, because its layers are not wired as the sites assume.
    """
    before = log_probabilities(model, sequences[0])
    passes = list(in_passes(sites))
    done, total = 0, len(passes) * len(sequences)
    found: dict[Site, Found] = {}
    unseen = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        advance(done, total)

    for part in passes:
        grams = input_grams(model, part, sequences, one_more)
        for site in part:
            gram_II = grams.pop(site)
            unseen += not gram_II.any()
            found[site] = search([reader.of(model) for reader in site.readers], gram_II, grid, site)
            fold(model, site, found[site].scales)
    if unseen:
        experts = sum(site.expert is not None for site in sites)
        logger.warning(
            "%d of %d experts read no token of the calibration and are rounded without scales; raise --samples",
            unseen,
            experts,
        )
    change = float((log_probabilities(model, sequences[0]) - before).abs().max())
    if not change <= MAX_CHANGE:
        raise UserError(
            f"MODEL: folding scales changes the log-probabilities of a {type(model).__name__} by {change:.2g}, wanted "
            f"at most {MAX_CHANGE}; its layers are wired in a way that export does not know"
        )
    readers = [reader for site in sites for reader in site.readers]
    record = ScalesRecord(
        bits=grid.bits,
        group_size=grid.group_size,
        layers=len(readers),
        weights=sum(reader.of(model).numel() for reader in readers),
        has_experts=any(site.expert is not None for site in sites),
        samples=len(sequences),
        tokens=sum(map(len, sequences)),
        output_error=fmean(each.error for each in found.values()),
        output_error_without_scales=fmean(each.error_unscaled for each in found.values()),
        prompt=sequences[0][:PROMPT].tolist(),
    )
    return {reader.stored: grid.scales(reader.of(model)).to(torch.bfloat16).cpu() for reader in readers}, record


def parameters_of(sites: Sequence[Site], scales: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scales by the names of the model's parameters, [O, G] or, of fused experts, [E, O, G].

    scales: by names in files. Raises UserError if they are not those of these sites.
    """
    readers = [reader for site in sites for reader in site.readers]
    if sorted(reader.stored for reader in readers) != sorted(scales):
        raise UserError("quantization: the scales of the initial weights are of other layers; remove student-init")
    found: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[int, list[torch.Tensor]]] = {}
    for reader in readers:
        if reader.expert is None:
            found[reader.parameter] = scales[reader.stored]
        else:
            parts.setdefault(reader.parameter, {}).setdefault(reader.expert, []).append(scales[reader.stored])
    for parameter, experts in parts.items():
        found[parameter] = torch.stack([torch.cat(experts[expert]) for expert in sorted(experts)])
    return found


@torch.no_grad()
def round_in_place(
    model: "PreTrainedModel", sites: Sequence[Site], scales: Mapping[str, torch.Tensor], grid: Grid
) -> None:
    """Replace the readers' weights by what their integers stand for. scales: as ``fold_scales`` returns them."""
    for reader in (reader for site in sites for reader in site.readers):
        weight_OI = reader.of(model)
        weight_OI.copy_(grid.fake_quantise(weight_OI, scales[reader.stored].to(weight_OI.device)))


@torch.no_grad()
def log_probabilities(model: "PreTrainedModel", ids_S: np.ndarray, tokens: int = 64) -> torch.Tensor:
    """Next-token log-probabilities after each of the first ``tokens`` tokens, float32 [S, V]."""
    ids = torch.from_numpy(ids_S[:tokens])[None].to(model.device)
    return model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=-1)
