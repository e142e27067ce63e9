"""Capture of ``draws``: tokens sampled from each row's softened distribution. Runs on the engine's device.

Stratified sampling: draw j of M falls in the j-th of M equal slices of the cumulative distribution. Averaged over the
slices, each token is drawn with exactly its probability, so sums over draws are unbiased, and their variance never
exceeds that of independent draws. The cumulative distribution is never built over the whole vocabulary: block sums
locate the block of a draw, and only that block is searched.

The uniform numbers depend on the sample's seed alone, so a row's draws do not depend on the batch it was scored in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from schemas.cache_config import DrawsCapture
from teacher_cache.records import Request
from teacher_cache.signals.draws.record import DrawsSample
from teacher_cache.signals.fused import fused
from teacher_cache.signals.logits.capture import chunk_size
from teacher_cache.signals.tap import Tap

BLOCK = 64


class DrawnRows(NamedTuple):
    """Draws of N rows, on the device they were computed on."""

    ids_NTM: torch.Tensor  # int32
    entropy_NT: torch.Tensor  # float32, nats


def uniforms(request: Request, capture: DrawsCapture) -> np.ndarray:
    """Uniform numbers of a sequence's draws in [0, 1), ascending along M: float64 [P, T, M]."""
    shape = (len(request.logits_positions), len(capture.temperatures), capture.n)
    offsets = np.random.Generator(np.random.Philox(key=request.seed)).random(shape)
    return (np.arange(capture.n) + offsets) / capture.n


def draw(
    logits_NV: torch.Tensor, excluded_NK: torch.Tensor | None, uniforms_NTM: torch.Tensor, temperatures: list[float]
) -> DrawnRows:
    """Draw M tokens per row and temperature, excluding the ids ``excluded_NK`` (None: excluding none).

    Args:
        logits_NV: raw logits, any floating dtype; computed in float32, cumulative sums in float64.
        excluded_NK: integer ids that are never drawn; they still count for the entropy.
        uniforms_NTM: float64, ascending along M; see ``uniforms``.
        temperatures: T values, each > 0.
    """
    if excluded_NK is None:
        excluded_NK = logits_NV.new_empty((len(logits_NV), 0), dtype=torch.int64)
    rows = chunk_size(logits_NV)
    chunks = zip(logits_NV.split(rows), excluded_NK.split(rows), uniforms_NTM.split(rows), strict=True)
    parts = [_draw_chunk(logits, excluded, places, temperatures) for logits, excluded, places in chunks]
    return DrawnRows(*(torch.cat(column) for column in zip(*parts, strict=True)))


@fused("draws")
def _draw_chunk(
    logits_NV: torch.Tensor, excluded_NK: torch.Tensor, uniforms_NTM: torch.Tensor, temperatures: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_NV = logits_NV.float()
    shifted_NV = logits_NV - logits_NV.amax(dim=1, keepdim=True)
    ids, entropies = [], []
    for column, temperature in enumerate(temperatures):
        scaled_NV = shifted_NV / temperature
        exp_NV = scaled_NV.exp()
        total_N = exp_NV.sum(dim=1)
        entropies.append(total_N.log() - torch.linalg.vecdot(exp_NV, scaled_NV.clamp_(min=-1e30)) / total_N)
        if excluded_NK.shape[1]:
            exp_NV.scatter_(1, excluded_NK.long(), 0.0)
        ids.append(_invert(exp_NV, uniforms_NTM[:, column]))
    return torch.stack(ids, dim=1), torch.stack(entropies, dim=1)


def _invert(weights_NV: torch.Tensor, uniforms_NM: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative weights: the token at each uniform share of their sum, int32 [N, M].

    A token of weight 0 is only drawn if all weights of its row are 0.
    """
    n, vocabulary = weights_NV.shape
    padded_NV = torch.nn.functional.pad(weights_NV, (0, -vocabulary % BLOCK))
    blocks_NCB = padded_NV.unflatten(1, (-1, BLOCK))  # C blocks
    sums_NC = blocks_NCB.sum(dim=2, dtype=torch.float64)
    ends_NC = sums_NC.cumsum(dim=1)
    wanted_NM = uniforms_NM * ends_NC[:, -1:]
    block_NM = torch.searchsorted(ends_NC, wanted_NM, right=True).clamp(max=ends_NC.shape[1] - 1)
    inside_NM = wanted_NM - (ends_NC - sums_NC).gather(1, block_NM)
    share_NM = (inside_NM / sums_NC.gather(1, block_NM)).nan_to_num(0.0).clamp(min=0.0, max=1 - 1e-12)
    chosen_NMB = blocks_NCB.gather(1, block_NM[:, :, None].expand(n, -1, BLOCK))
    within_NMB = chosen_NMB.cumsum(dim=2, dtype=torch.float64)
    place_NM = (within_NMB <= share_NM[:, :, None] * within_NMB[:, :, -1:]).sum(dim=2).clamp(max=BLOCK - 1)
    return (block_NM * BLOCK + place_NM).clamp(max=vocabulary - 1).int()


class DrawsTap(Tap):
    """Draws tokens from each stored row of logits."""

    reads_logits = True

    def __init__(self, settings: DrawsCapture) -> None:
        self._settings = settings

    def row_inputs(self, request: Request) -> np.ndarray:
        """Uniform numbers of the draws, float64 [P, T, M]."""
        return uniforms(request, self._settings)

    def from_logits(self, logits_NV: torch.Tensor, ids_NK: torch.Tensor, inputs_N: torch.Tensor) -> DrawnRows:
        """Draw from all tokens or, for the region ``tail``, from those outside the stored entries."""
        excluded_NK = ids_NK if self._settings.region == "tail" else None
        return draw(logits_NV, excluded_NK, inputs_N, self._settings.temperatures)

    def sample(self, positions: np.ndarray, pieces: Sequence[DrawnRows]) -> DrawsSample:
        """Use the first piece: all ranks that have the logits draw the same."""
        return to_draws_sample(positions, pieces[0])


def to_draws_sample(positions: np.ndarray, rows: DrawnRows) -> DrawsSample:
    """Record of one sequence, in host memory."""
    return DrawsSample(positions, rows.ids_NTM.cpu().numpy(), rows.entropy_NT.cpu().numpy())
