"""Draws from the tail beyond fewer stored entries, from those beyond more: what ``repack --k`` makes of them.

The new tail is the old one and the dropped entries, whose probabilities are stored. Each of the M draws of a row falls
either on a dropped entry, or in the old tail and then on one of its M draws; as in capture, draw j falls in the j-th of
M equal slices of the new tail. Averaged over the draws, old and new, each token of the new tail is drawn with exactly
its probability, up to the rounding of the stored values.

Shape letters: P stored rows, K stored entries before, J dropped ones, T temperatures, M draws.
"""

from dataclasses import replace

import numpy as np
import xxhash

from schemas.cache_config import CaptureConfig
from teacher_cache.records import LogitsSample
from teacher_cache.signals.draws.record import DrawsSample
from teacher_cache.signals.logits.softened import softened_probabilities


def draws_beyond(k: int, key: str, logits: LogitsSample, draws: DrawsSample, capture: CaptureConfig) -> DrawsSample:
    """``draws`` of the sample ``key`` as if only the likeliest ``k`` entries of each row of ``logits`` were stored.

    capture: the settings of the old cache. The same key and settings give the same draws.
    """
    assert capture.draws is not None
    shape = (len(draws.positions), capture.draws.n)
    ids_PTM = np.empty_like(draws.ids)
    rng = np.random.Generator(np.random.Philox(key=xxhash.xxh3_64_intdigest(f"{k} {key}".encode())))
    for column, temperature in enumerate(capture.draws.temperatures):
        p_PK = softened_probabilities(logits, capture.logits.temperatures.index(temperature), temperature)
        uniforms_PM = (np.arange(shape[1]) + rng.random(shape)) / shape[1]
        ids_PTM[:, column] = _redrawn(p_PK, k, logits.ids, draws.ids[:, column], uniforms_PM)
    return replace(draws, ids=ids_PTM)


def _redrawn(p_PK: np.ndarray, k: int, ids_PK: np.ndarray, draws_PM: np.ndarray, uniforms_PM: np.ndarray) -> np.ndarray:
    """Ids at these shares of the new tail, int32 [P, M]."""
    (n_rows, n_draws), n_dropped = draws_PM.shape, p_PK.shape[1] - k
    old_tail_P1 = np.clip(1 - p_PK.sum(axis=1, keepdims=True), 0, None)
    ends_PJ = p_PK[:, k:].cumsum(axis=1)
    total_P1 = ends_PJ[:, -1:] + old_tail_P1
    wanted_PM = uniforms_PM * total_P1
    place_PM = (wanted_PM[:, :, None] >= ends_PJ[:, None, :]).sum(axis=2)
    is_dropped_PM = place_PM < n_dropped
    share_PM = (wanted_PM - ends_PJ[:, -1:]) / np.where(old_tail_P1 > 0, old_tail_P1, 1)
    old_PM = (share_PM * n_draws).astype(np.int64).clip(0, n_draws - 1)
    rows_P1 = np.arange(n_rows)[:, None]
    dropped_PM = ids_PK[rows_P1, k + place_PM.clip(max=n_dropped - 1)]
    return np.where(is_dropped_PM, dropped_PM, draws_PM[rows_P1, old_PM]).astype(np.int32)
