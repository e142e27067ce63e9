"""Check a sample's draws and entropies against the stored entries of its logits.

Shape letters as in ``teacher_cache.records``; P rows that have both signals, M draws.
"""

from collections.abc import Iterator

import numpy as np

from schemas.cache_config import DrawsCapture
from schemas.manifest import Manifest
from teacher_cache.records import LogitsSample
from teacher_cache.signals.draws.record import DrawsSample
from teacher_cache.signals.logits.consistency import NO_TOKEN, errors_of


def draws_contradictions(
    draws: DrawsSample, logits: LogitsSample, capture: DrawsCapture, manifest: Manifest
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each kind of contradiction between draws and stored entries, with its rows of the sequence."""
    common = np.intersect1d(draws.positions, logits.positions, assume_unique=True, return_indices=True)
    for what, wrong_P in _wrong_rows(draws, logits, capture, manifest, common[1], common[2]):
        if wrong_P.any():
            yield what, common[0][wrong_P]


def _wrong_rows(
    draws: DrawsSample,
    logits: LogitsSample,
    capture: DrawsCapture,
    manifest: Manifest,
    at_draws: np.ndarray,
    at_logits: np.ndarray,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each kind of contradiction with a mask of the common rows, bool [P]."""
    logprobs_PK = logits.logprobs[at_logits].astype(np.float64)
    error_PK, scalar = errors_of(logprobs_PK, manifest)
    entry_PK = np.where(np.isfinite(logprobs_PK), logits.ids[at_logits], NO_TOKEN)
    for column, temperature in enumerate(capture.temperatures):
        partition_P1 = logits.log_partition[at_logits][:, [manifest.capture.logits.temperatures.index(temperature)]]
        slack_P = error_PK.max(axis=1, initial=0.0) / temperature + scalar
        log_p_PK = logprobs_PK / temperature - partition_P1
        p_PK = np.exp(log_p_PK)
        rest_P = np.maximum(1 - p_PK.sum(axis=1), 0)
        drawn_PM = draws.ids[at_draws, column]
        if capture.region == "tail":  # if hardly any mass is outside, rounding decides what is drawn
            inside_P = (drawn_PM[:, :, None] == entry_PK[:, None, :]).any(axis=(1, 2))
            yield "a stored entry was drawn from the tail", inside_P & (rest_P > slack_P)
        else:  # one draw per slice: a token gets n p draws, ± the slices it shares
            n_best_P = (drawn_PM == entry_PK[:, [0]]).sum(axis=1)
            expected_P = capture.n * p_PK[:, 0]
            wrong_P = np.abs(n_best_P - expected_P) > 2 + expected_P * np.expm1(slack_P)
            yield "the likeliest token was drawn too often or too rarely", wrong_P
        terms_PK = np.where(p_PK > 0, p_PK * np.where(np.isfinite(log_p_PK), log_p_PK, 0), 0)
        bucket_P = -terms_PK.sum(axis=1) - rest_P * np.log(np.where(rest_P > 0, rest_P, 1))
        most = np.log(manifest.teacher.vocab_size)
        slack_P = np.expm1(slack_P) * (most + 2) + scalar  # p is off by this factor, and -p log p accordingly
        entropy_P = draws.entropy[at_draws, column].astype(np.float64)
        wrong_P = (entropy_P < bucket_P - slack_P) | (entropy_P > bucket_P + rest_P * most + slack_P)
        yield f"the entropy at temperature {temperature:g} contradicts the stored entries", wrong_P
