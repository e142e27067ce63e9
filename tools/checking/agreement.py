"""Distances of stored rows from rows rescored by a teacher, also under the hypotheses of a shift and of a temperature.

A row's distance is the mean |Δ log p| of its stored entries, in nats. For correct rows it is the codec's rounding plus
arithmetic noise. Rows that are shifted, or whose logits were divided by a temperature, are far off as stored, and close
once compared with their neighbours or at that temperature. Shape letters as in ``teacher_cache.records``; B: values of
1/T tried.
"""

from dataclasses import dataclass

import numpy as np

from teacher_cache.records import LogitsSample

GRID = tuple(range(1, 21))  # tenths of 1/T at which the teacher's log-partitions are computed: T from 10 to 0.5
GRID_TEMPERATURES = tuple(10 / tenths for tenths in GRID)
UNIT = 93  # index of 1 in INVERSE_B
INVERSE_B = 1.025 ** np.arange(-UNIT, 29)  # values of 1/T tried, about 0.1 to 2
SHIFTS = (0, -1, 1)


@dataclass(frozen=True)
class Rows:
    """Stored rows of one sequence, and the same and neighbouring rows (t - 1, t, t + 1) rescored by the teacher."""

    stored: LogitsSample
    again: LogitsSample  # rescored: more entries per row, and log-partitions at ``temperatures``
    temperatures: list[float]  # starts with GRID_TEMPERATURES

    def aligned(self, shift: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of stored rows whose row ``shift`` later was rescored, and of those rows in ``again``; int64 [P]."""
        wanted_P = self.stored.positions + shift
        at_P = np.searchsorted(self.again.positions, wanted_P).clip(max=len(self.again.positions) - 1)
        here_P = np.flatnonzero(self.again.positions[at_P] == wanted_P)
        return here_P, at_P[here_P]


def entries(rows: Rows, shift: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stored entries and the teacher's log-probabilities of the same tokens, ``shift`` rows later.

    Returns:
        Indices of the stored rows and of the rescored rows, [P]; stored log-probabilities [P, K], NaN where there is no
        entry; the teacher's [P, K], the row's lowest rescored one if the token is not among the rescored; whether it is
        among them, bool [P, K].
    """
    here_P, there_P = rows.aligned(shift)
    ids_PK = rows.stored.ids[here_P].astype(np.int64)
    known_PJ, logprobs_PJ = rows.again.ids[there_P].astype(np.int64), rows.again.logprobs[there_P].astype(np.float64)
    base = 2 + max(ids_PK.max(initial=0), known_PJ.max(initial=0))
    known_PJ = np.where(np.isfinite(logprobs_PJ), known_PJ, base - 1)  # padding gets an id that no entry has
    row_P1 = np.arange(len(here_P))[:, None] * base
    known_N, values_N = (row_P1 + known_PJ).reshape(-1), logprobs_PJ.reshape(-1)
    order_N = np.argsort(known_N)
    wanted_PK = row_P1 + ids_PK
    at_PK = order_N[np.searchsorted(known_N, wanted_PK, sorter=order_N).clip(max=max(0, len(known_N) - 1))]
    found_PK = known_N[at_PK] == wanted_PK
    lowest_P1 = np.where(np.isfinite(logprobs_PJ), logprobs_PJ, np.inf).min(axis=1, initial=np.inf, keepdims=True)
    there_PK = np.where(found_PK, values_N[at_PK], lowest_P1)
    stored_PK = rows.stored.logprobs[here_P].astype(np.float64)
    is_entry_PK = np.arange(stored_PK.shape[1]) < rows.stored.counts[here_P, None]
    return here_P, there_P, np.where(is_entry_PK, stored_PK, np.nan), there_PK, found_PK & is_entry_PK


def distances(rows: Rows, shift: int = 0) -> np.ndarray:
    """Distance of each row if it was stored ``shift`` rows too early and its logits were divided by T; nats [P, B]."""
    _, there_P, stored_PK, again_PK, _ = entries(rows, shift)
    partition_PB = partitions(rows, there_P)
    found_PB = np.empty(partition_PB.shape)
    for b, inverse in enumerate(INVERSE_B):
        found_PB[:, b] = np.nanmean(np.abs(stored_PK - inverse * again_PK + partition_PB[:, [b]]), axis=1)
    return found_PB


def partitions(rows: Rows, there_P: np.ndarray) -> np.ndarray:
    """The teacher's log Σ p^(1/T) at all INVERSE_B, nats [P, B]: smooth in 1/T, so interpolated cubically."""
    return rows.again.log_partition[there_P][:, : len(GRID)].astype(np.float64) @ _weights().T


def _weights() -> np.ndarray:
    """Weights [B, grid] of Lagrange interpolation between the four nearest grid points."""
    grid = np.array(GRID) / 10
    weights = np.zeros((len(INVERSE_B), len(grid)))
    for b, inverse in enumerate(INVERSE_B):
        first = int(np.clip(np.searchsorted(grid, inverse) - 2, 0, len(grid) - 4))
        for i in range(first, first + 4):
            others = [j for j in range(first, first + 4) if j != i]
            weights[b, i] = np.prod([(inverse - grid[j]) / (grid[i] - grid[j]) for j in others])
    return weights


def divergence(rows: Rows) -> np.ndarray:
    """KL(rescored ‖ stored) over each row's entries and one bucket for all other tokens, nats [P]."""
    _, _, stored_PK, again_PK, _ = entries(rows)
    there = ~np.isnan(stored_PK)
    p_PK, q_PK = (np.where(there, np.exp(np.where(there, log, 0)), 0) for log in (again_PK, stored_PK))
    q_PK /= np.maximum(1, q_PK.sum(axis=1, keepdims=True))
    rest_p, rest_q = (np.clip(1 - values.sum(axis=1), 1e-6, None) for values in (p_PK, q_PK))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms_PK = np.where(p_PK > 0, p_PK * (np.log(p_PK) - np.log(q_PK)), 0)
    return terms_PK.sum(axis=1) + rest_p * np.log(rest_p / rest_q)


def nearest_temperature(rows: Rows, stored_P: np.ndarray) -> np.ndarray:
    """The temperature at which the teacher's log-partition is closest to each of these values, [P]."""
    here_P, there_P = rows.aligned(0)
    return 1 / INVERSE_B[np.abs(partitions(rows, there_P) - stored_P[here_P, None]).argmin(axis=1)]
