"""Capture of ``logits``: reduce rows of logits to what is stored. Runs on the engine's device, in chunks of rows.

Only the small result leaves the device: k ids and log-probabilities, the realised token's log-probability, one
log-partition per temperature, and the entropy.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from schemas.cache_config import LogitsCapture
from schemas.errors import UserError
from teacher_cache.records import LogitsSample, Request
from teacher_cache.signals.logits.log_sums import log_sums
from teacher_cache.signals.logits.topk import block_top_k

CPU_CHUNK_ROWS = 32  # a chunk of float32 logits stays within a CPU's last-level cache


class LogitsRows(NamedTuple):
    """N reduced rows of logits, on the device they were computed on."""

    ids_NK: torch.Tensor  # int32, in descending probability
    logprobs_NK: torch.Tensor  # float32, nats, temperature 1
    next_logprob_N: torch.Tensor  # float32, nats, temperature 1
    log_partition_NT: torch.Tensor  # float32, nats; log Σ_v p(v)^(1/T)
    entropy_N: torch.Tensor  # float32, nats; of the whole distribution at temperature 1; reported, not stored


def reduce_logits(logits_NV: torch.Tensor, next_ids_N: torch.Tensor, k: int, temperatures: list[float]) -> LogitsRows:
    """Reduce rows of logits to their top ``k`` log-probabilities, the next token's, log-partitions and entropy.

    Args:
        logits_NV: [N, V] raw logits, any floating dtype; reduced in float32.
        next_ids_N: [N] integer, the token that follows each row (any valid id if none follows).
        k: number of entries to keep, 1 ≤ k ≤ V.
        temperatures: each > 0, including 1.0; column j of the log-partition is log Σ_v p(v)^(1 / temperatures[j]).
    """
    rows = chunk_size(logits_NV)
    parts = [
        _reduce_chunk(logits, next_ids, k, temperatures)
        for logits, next_ids in zip(logits_NV.split(rows), next_ids_N.split(rows), strict=True)
    ]
    return LogitsRows(*(torch.cat(column) for column in zip(*parts, strict=True)))


def chunk_size(logits_NV: torch.Tensor) -> int:
    """Number of rows of logits to reduce at a time."""
    return CPU_CHUNK_ROWS if logits_NV.device.type == "cpu" else max(1, len(logits_NV))


def _reduce_chunk(
    logits_NV: torch.Tensor, next_ids_N: torch.Tensor, k: int, temperatures: list[float]
) -> tuple[torch.Tensor, ...]:
    top_NK, ids_NK = block_top_k(logits_NV, k)
    top_NK = top_NK.float()
    next_logit_N = logits_NV.gather(1, next_ids_N[:, None].long()).squeeze(1).float()
    max_N = top_NK[:, 0]
    log_sum_NT, entropy_N = log_sums(logits_NV, max_N, temperatures)
    log_sum_N = log_sum_NT[:, temperatures.index(1.0)]
    log_z_N = max_N + log_sum_N
    partition_NT = log_sum_NT - log_sum_N[:, None] / _on_device(tuple(temperatures), log_sum_N.device)
    return ids_NK.int(), top_NK - log_z_N[:, None], next_logit_N - log_z_N, partition_NT, entropy_N


@cache
def _on_device(temperatures: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """float32 [T], uploaded once: each upload makes the host wait for the device."""
    return torch.tensor(temperatures, device=device)


def to_sample(rows: LogitsRows, request: Request, capture: LogitsCapture) -> LogitsSample:
    """Record of one sequence, in host memory, after applying the selection policy of ``capture``.

    Raises UserError if a row's largest logit or a log-partition is not finite: the teacher overflowed.
    """
    ids = rows.ids_NK.cpu().numpy()
    logprobs = rows.logprobs_NK.cpu().numpy()
    num_tokens, positions = len(request.input_ids), request.logits_positions
    next_logprob = np.where(positions == num_tokens - 1, np.float32(np.nan), rows.next_logprob_N.cpu().numpy())
    log_partition = rows.log_partition_NT.cpu().numpy()
    sound = np.isfinite(logprobs[:, 0]) & np.isfinite(log_partition).all(axis=1) & ~np.isnan(logprobs).any(axis=1)
    if not sound.all():
        raise UserError(
            f"teacher: the logits of token {positions[np.argmin(sound)]} of a sequence are not finite; choose a "
            "teacher.dtype with a wider range (bfloat16 or float32) or check the weights"
        )
    counts = select_counts(logprobs, capture)
    beyond = np.arange(ids.shape[1]) >= counts[:, None]
    return LogitsSample(
        num_tokens=num_tokens,
        positions=positions,
        counts=counts,
        ids=np.where(beyond, 0, ids),
        logprobs=np.where(beyond, np.float32(-np.inf), logprobs),
        next_logprob=next_logprob,
        log_partition=log_partition,
    )


def select_counts(logprobs: np.ndarray, capture: LogitsCapture) -> np.ndarray:
    """Number of entries per row that the policy keeps.

    ``top_k`` keeps all; ``nucleus`` keeps the smallest leading set whose probability reaches ``capture.mass``, or
    all if it is not reached. Entries of probability 0 (masked logits) are never kept.

    Args:
        logprobs: float32 [P, K], descending along each row.

    Returns:
        int32 [P], between 1 and K.
    """
    finite = np.isfinite(logprobs).sum(axis=1)
    if capture.policy == "nucleus":
        reached_before = np.cumsum(np.exp(logprobs.astype(np.float64)), axis=1)[:, :-1]
        finite = np.minimum(finite, 1 + (reached_before < capture.mass).sum(axis=1))
    return finite.astype(np.int32)
