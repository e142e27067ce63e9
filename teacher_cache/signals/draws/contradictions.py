"""Do a sample's draws and entropies agree with the entries that its logits keep?

Letters as in ``teacher_cache.records``; P rows that have both, M draws.
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
    """What of a sample's draws its stored entries contradict, and at which rows of the sequence."""
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
    """Each kind of contradiction, and at which of the rows that both have (bool)."""
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
        if capture.region == "tail":  # where hardly anything is outside, rounding decides what is drawn
            inside_P = (drawn_PM[:, :, None] == entry_PK[:, None, :]).any(axis=(1, 2))
            yield "a token that is stored was drawn from those that are not", inside_P & (rest_P > slack_P)
        else:  # one draw in each of n equal slices: so many of a token's, give or take the slices it shares
            n_best_P = (drawn_PM == entry_PK[:, [0]]).sum(axis=1)
            expected_P = capture.n * p_PK[:, 0]
            wrong_P = np.abs(n_best_P - expected_P) > 2 + expected_P * np.expm1(slack_P)
            yield "the best token was drawn too often or too seldom", wrong_P
        terms_PK = np.where(p_PK > 0, p_PK * np.where(np.isfinite(log_p_PK), log_p_PK, 0), 0)
        bucket_P = -terms_PK.sum(axis=1) - rest_P * np.log(np.where(rest_P > 0, rest_P, 1))
        most = np.log(manifest.teacher.vocab_size)
        slack_P = np.expm1(slack_P) * (most + 2) + scalar  # p changes by that factor, and -p log p with it
        entropy_P = draws.entropy[at_draws, column].astype(np.float64)
        wrong_P = (entropy_P < bucket_P - slack_P) | (entropy_P > bucket_P + rest_P * most + slack_P)
        yield f"the entropy at temperature {temperature:g} contradicts the stored entries", wrong_P
