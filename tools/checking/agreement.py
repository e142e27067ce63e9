"""Do stored rows agree with rows that the teacher gives now, and if not, what would explain them?

A row's distance is the mean |Δ log p| of its stored entries, in nats. It is what the codec's rounding and the noise of
the arithmetic leave, or it is far more: unless the rows are compared with their neighbours, or at the temperature that
the logits were divided by. Letters as in ``teacher_cache.records``; B: values of 1/T that are tried.
"""

from dataclasses import dataclass

import numpy as np

from teacher_cache.records import LogitsSample

GRID = tuple(range(1, 21))  # tenths of 1/T at which the teacher's log-partitions are computed: T from 10 to 0.5
GRID_TEMPERATURES = tuple(10 / tenths for tenths in GRID)
UNIT = 93  # the place of 1 in the next one
INVERSE_B = 1.025 ** np.arange(-UNIT, 29)  # 1/T that are tried, about 0.1 to 2
SHIFTS = (0, -1, 1)


@dataclass(frozen=True)
class Rows:
    """Stored rows of one sequence, and the same and neighbouring rows (t - 1, t, t + 1) as the teacher gives them."""

    stored: LogitsSample
    again: LogitsSample  # more entries a row, and log-partitions at ``temperatures``
    temperatures: list[float]  # those of GRID_TEMPERATURES first

    def aligned(self, shift: int) -> tuple[np.ndarray, np.ndarray]:
        """Stored rows whose row ``shift`` later the teacher gave: their numbers here, and that row's in ``again``."""
        wanted_P = self.stored.positions + shift
        at_P = np.searchsorted(self.again.positions, wanted_P).clip(max=len(self.again.positions) - 1)
        here_P = np.flatnonzero(self.again.positions[at_P] == wanted_P)
        return here_P, at_P[here_P]


def entries(rows: Rows, shift: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stored rows, and for their entries what the teacher gives ``shift`` rows later.

    Returns:
        Numbers of the stored rows and of the teacher's [P]; stored log-probabilities [P, K], NaN where there is no
        entry; the teacher's [P, K], its row's lowest known one where it is not among the known ones; whether it is.
    """
    here_P, there_P = rows.aligned(shift)
    ids_PK = rows.stored.ids[here_P].astype(np.int64)
    known_PJ, logprobs_PJ = rows.again.ids[there_P].astype(np.int64), rows.again.logprobs[there_P].astype(np.float64)
    base = 2 + max(ids_PK.max(initial=0), known_PJ.max(initial=0))
    known_PJ = np.where(np.isfinite(logprobs_PJ), known_PJ, base - 1)  # what has no entry is nobody's id
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
    """Distance of each row, if it was stored ``shift`` rows too early and its logits divided by T: [P, B]."""
    _, there_P, stored_PK, again_PK, _ = entries(rows, shift)
    partition_PB = partitions(rows, there_P)
    found_PB = np.empty(partition_PB.shape)
    for b, inverse in enumerate(INVERSE_B):
        found_PB[:, b] = np.nanmean(np.abs(stored_PK - inverse * again_PK + partition_PB[:, [b]]), axis=1)
    return found_PB


def partitions(rows: Rows, there_P: np.ndarray) -> np.ndarray:
    """The teacher's log Σ p^(1/T) at all INVERSE_B, [P, B]: cubic interpolation of a function without corners."""
    return rows.again.log_partition[there_P][:, : len(GRID)].astype(np.float64) @ _weights().T


def _weights() -> np.ndarray:
    """Weights [B, grid] of Lagrange's interpolation between the four nearest points."""
    grid = np.array(GRID) / 10
    weights = np.zeros((len(INVERSE_B), len(grid)))
    for b, inverse in enumerate(INVERSE_B):
        first = int(np.clip(np.searchsorted(grid, inverse) - 2, 0, len(grid) - 4))
        for i in range(first, first + 4):
            others = [j for j in range(first, first + 4) if j != i]
            weights[b, i] = np.prod([(inverse - grid[j]) / (grid[i] - grid[j]) for j in others])
    return weights


def divergence(rows: Rows) -> np.ndarray:
    """KL(the teacher's ‖ stored) of each row's entries and one bucket for all else, nats [P]."""
    _, _, stored_PK, again_PK, _ = entries(rows)
    there = ~np.isnan(stored_PK)
    p_PK, q_PK = (np.where(there, np.exp(np.where(there, log, 0)), 0) for log in (again_PK, stored_PK))
    q_PK /= np.maximum(1, q_PK.sum(axis=1, keepdims=True))
    rest_p, rest_q = (np.clip(1 - values.sum(axis=1), 1e-6, None) for values in (p_PK, q_PK))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms_PK = np.where(p_PK > 0, p_PK * (np.log(p_PK) - np.log(q_PK)), 0)
    return terms_PK.sum(axis=1) + rest_p * np.log(rest_p / rest_q)


def nearest_temperature(rows: Rows, stored_P: np.ndarray) -> np.ndarray:
    """The temperature at which the teacher's log-partition is nearest to each of these values, [P]."""
    here_P, there_P = rows.aligned(0)
    return 1 / INVERSE_B[np.abs(partitions(rows, there_P) - stored_P[here_P, None]).argmin(axis=1)]
