"""Activation-aware scales (AWQ, arXiv 2306.00978): which channels of an input to enlarge before rounding.

The error of a matrix is tr(ΔW · XᵀX · ΔWᵀ), the squared error of its outputs over the calibration, with the whole XᵀX:
its diagonal alone chooses worse scales than none. Candidates are s = r^α for α from 0 to 1, r the root mean square of
each channel, shared by all readers of the site. Every α is tried on the same rows of each matrix, evenly spread: with
all of them, those of a layer with 256 experts above all, the search would take longer than the calibration.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from trainer.quantization.folding import pooled, spread
from trainer.quantization.grid import Grid
from trainer.quantization.sites import Site

STEPS = 20
ROWS = 768  # of all matrices of a site


class Found(NamedTuple):
    """Scales of the producer's outputs, float [heads * channels]; errors relative to the outputs' energy."""

    scales: torch.Tensor
    alpha: float
    error: float
    error_unscaled: float


def output_error(delta_OI: torch.Tensor, gram_II: torch.Tensor) -> torch.Tensor:
    """tr(ΔW · XᵀX · ΔWᵀ), a scalar."""
    return ((delta_OI @ gram_II) * delta_OI).sum()


@torch.no_grad()
def search(weights_OI: Sequence[torch.Tensor], gram_II: torch.Tensor, grid: Grid, site: Site) -> Found:
    """The best scales for a site: weights of its readers, float32 [O, I], and XᵀX of its input, float32 [I, I]."""
    gram_II = gram_II.to(weights_OI[0].dtype)
    most = max(1, ROWS // len(weights_OI))
    weights_OI = [weight_OI[:: -(-len(weight_OI) // most)] for weight_OI in weights_OI]
    magnitude = pooled(gram_II.diagonal(), site).sqrt()
    magnitude = magnitude.clamp_min(1e-4 * magnitude.max()).clamp_min(torch.finfo(magnitude.dtype).tiny)
    magnitude /= magnitude.log().mean().exp()
    energy = float(sum(output_error(weight_OI, gram_II) for weight_OI in weights_OI)) or 1.0
    best: Found | None = None
    unscaled = 0.0
    for step in range(STEPS + 1 if site.producer is not None else 1):
        alpha = step / STEPS
        scales = magnitude**alpha
        wide_I = spread(scales, site)
        error = 0.0
        for weight_OI in weights_OI:
            scaled_OI = weight_OI * wide_I
            delta_OI = grid.fake_quantise(scaled_OI, grid.scales(scaled_OI)) / wide_I - weight_OI
            error += float(output_error(delta_OI, gram_II)) / energy
        unscaled = error if step == 0 else unscaled
        if best is None or error < best.error:
            best = Found(scales, alpha, error, unscaled)
    assert best is not None
    return best
