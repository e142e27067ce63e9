"""The pre-pass: find activation-aware scales from a calibration and fold them into the model, which computes the same.

What is left to do to quantise the folded model is to round it: its grid and sites say how. Training under quantisation
starts from here too.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import torch

from schemas.errors import UserError
from trainer.quantization.folding import fold
from trainer.quantization.grid import Grid
from trainer.quantization.input_moments import in_passes, input_grams
from trainer.quantization.scale_search import Found, search
from trainer.quantization.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
MAX_CHANGE = 0.01  # nats: of log-probabilities by folding in float32; wrong folding gives far more


@dataclass(frozen=True)
class Folded:
    """What the pre-pass found, site by site."""

    found: dict[Site, Found]

    @property
    def error(self) -> float:
        """Mean relative error of the outputs of a site's readers, after rounding."""
        return fmean(each.error for each in self.found.values())

    @property
    def error_unscaled(self) -> float:
        """The same without activation-aware scales."""
        return fmean(each.error_unscaled for each in self.found.values())


def fold_scales(
    model: "PreTrainedModel",
    sites: Sequence[Site],
    grid: Grid,
    sequences: Sequence[np.ndarray],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Folded:
    """Search the scales of all sites and fold them into ``model`` (float32), in place.

    sequences: token ids, int64 [S]. advance: (sequences done, sequences of all passes). Raises UserError if the model
    does not compute the same afterwards, because its layers are not wired as the sites assume.
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
    return Folded(found)


@torch.no_grad()
def log_probabilities(model: "PreTrainedModel", ids_S: np.ndarray, tokens: int = 64) -> torch.Tensor:
    """Next-token log-probabilities after each of the first ``tokens`` tokens, float32 [S, V]."""
    ids = torch.from_numpy(ids_S[:tokens])[None].to(model.device)
    return model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=-1)
