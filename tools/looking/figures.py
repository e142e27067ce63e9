"""Per-row figures of a teacher's distributions (entropy, coverage, surprise, …), in float64."""

import math
from dataclasses import dataclass, replace

import numpy as np

from schemas.errors import CorruptCacheError
from schemas.manifest import Manifest, Signal
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.draws.record import DrawsSample
from teacher_cache.signals.logits.entropy import bucket_entropy


@dataclass(frozen=True)
class RowFigures:
    """Figures of the rows of a sample that are stored and in its loss mask; row t predicts token t + 1."""

    positions: np.ndarray  # int [P]
    entropy: np.ndarray  # [P]; nats, at temperature 1
    at_most: np.ndarray  # [P]; upper bound of the entropy, equal to it if it is exact
    top1: np.ndarray  # [P]; probability of the likeliest token
    coverage: np.ndarray  # [P]; probability mass of the stored entries
    surprise: np.ndarray  # [P]; −log probability of the next token, nats

    @property
    def support(self) -> np.ndarray:
        """Effective support, exp(entropy) [P]: as many equally likely tokens have the same entropy."""
        return np.exp(self.entropy)


@dataclass(frozen=True)
class Measured:
    """A sample with the figures of its rows."""

    tokens: TokenSample
    logits: LogitsSample  # only the rows that ``figures`` covers
    figures: RowFigures


def exact_column(manifest: Manifest) -> int | None:
    """Index of temperature 1 among the draws' temperatures, where the exact entropy is stored; None without it."""
    draws = manifest.capture.draws
    return draws.temperatures.index(1.0) if draws is not None and 1.0 in draws.temperatures else None


def signals_for(exact: int | None) -> tuple[Signal, ...]:
    """The signals a reader must open for ``measure``."""
    return ("tokens", "logits") if exact is None else ("tokens", "logits", "draws")


def measure(reader: CacheReader, number: int, exact: int | None, entries: int | None = None) -> Measured:
    """Read sample ``number`` of a reader and compute its figures.

    ``exact``: see ``exact_column``; without it, the entropy is a lower bound. ``entries``: compute the bound from a
    row's first so many entries (None: all), to make caches of different k comparable.
    """
    tokens, logits = reader.read_tokens(number), reader.read_logits(number)
    draws = None if exact is None else read_draws_of(reader, number, logits)
    in_loss_P = tokens.loss_mask[logits.positions]
    figures = row_figures(logits, in_loss_P, reader.manifest.teacher.vocab_size, draws, exact, entries)
    return Measured(tokens, select_rows(logits, in_loss_P), figures)


def read_draws_of(reader: CacheReader, number: int, logits: LogitsSample) -> DrawsSample:
    """The draws of sample ``number``. Raises CorruptCacheError unless their rows are those of ``logits``."""
    draws = reader.read_draws(number)
    if not np.array_equal(draws.positions, logits.positions):
        raise CorruptCacheError(f"{reader.where(number, 'draws')}: its rows are not those of the logits")
    return draws


def select_rows(logits: LogitsSample, rows: np.ndarray) -> LogitsSample:
    """A sample reduced to ``rows``: a bool mask [P], or indices."""
    names = ("positions", "counts", "ids", "logprobs", "next_logprob", "log_partition")
    return replace(logits, **{name: getattr(logits, name)[rows] for name in names})


def perplexity(mean_surprise: float) -> float:
    """exp(mean surprise), capped to stay within float range."""
    return math.exp(min(mean_surprise, 700.0))


def row_figures(
    logits: LogitsSample,
    chosen_P: np.ndarray,
    vocab_size: int,
    draws: DrawsSample | None = None,
    exact: int | None = None,
    entries: int | None = None,
) -> RowFigures:
    """Figures of the rows ``chosen_P`` (bool [P]), each of which must have a next token.

    With missing mass r over n tokens, a row's entropy is the entropy of its entries plus one bucket, plus r times the
    entropy within the bucket, which lies between 0 and log n.
    """
    logits = select_rows(logits, chosen_P)
    probabilities_PK = np.exp(logits.logprobs.astype(np.float64))
    coverage_P = np.minimum(probabilities_PK.sum(axis=1), 1)
    if draws is None or exact is None:
        entropy_P = np.maximum(bucket_entropy(replace(logits, logprobs=logits.logprobs[:, :entries])), 0)
        outside_P = np.maximum(vocab_size - logits.counts, 1)
        at_most_P = np.maximum(bucket_entropy(logits), 0) + (1 - coverage_P) * np.log(outside_P)
    else:
        entropy_P = at_most_P = draws.entropy[chosen_P, exact].astype(np.float64)
    return RowFigures(
        positions=logits.positions,
        entropy=np.minimum(entropy_P, np.log(vocab_size)),
        at_most=np.minimum(at_most_P, np.log(vocab_size)),
        top1=np.minimum(probabilities_PK[:, 0], 1),
        coverage=coverage_P,
        surprise=np.maximum(-logits.next_logprob.astype(np.float64), 0),
    )
