"""What a teacher's distributions are like, row by row. In float64."""

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
    """Of the rows of a sample that are stored and in its loss mask; row t predicts token t + 1."""

    positions: np.ndarray  # int [P]
    entropy: np.ndarray  # [P]; nats, at temperature 1
    at_most: np.ndarray  # [P]; what the entropy could be: itself if it is exact
    top1: np.ndarray  # [P]; probability of the likeliest token
    coverage: np.ndarray  # [P]; probability of all stored entries
    surprise: np.ndarray  # [P]; −log probability of the token that follows, nats

    @property
    def support(self) -> np.ndarray:
        """[P]; exp(entropy): of how many equally likely tokens a distribution has this entropy."""
        return np.exp(self.entropy)


@dataclass(frozen=True)
class Measured:
    """A sample: what it is, and the figures of its rows."""

    tokens: TokenSample
    logits: LogitsSample  # the rows of the figures only
    figures: RowFigures


def exact_column(manifest: Manifest) -> int | None:
    """Which temperature of the draws holds the exact entropy at T = 1; None if none does."""
    draws = manifest.capture.draws
    return draws.temperatures.index(1.0) if draws is not None and 1.0 in draws.temperatures else None


def signals_for(exact: int | None) -> tuple[Signal, ...]:
    """What a reader has to open for ``measure``."""
    return ("tokens", "logits") if exact is None else ("tokens", "logits", "draws")


def measure(reader: CacheReader, position: int, exact: int | None, entries: int | None = None) -> Measured:
    """Read a sample and work its figures out.

    ``exact``: see ``exact_column``; the entropy is a lower bound without it. ``entries``: how many of a row's entries
    the bound is taken from (None: all), which makes those of caches of several depths comparable.
    """
    tokens, logits = reader.read_tokens(position), reader.read_logits(position)
    draws = None if exact is None else read_draws_of(reader, position, logits)
    counting_P = tokens.loss_mask[logits.positions]
    figures = row_figures(logits, counting_P, reader.manifest.teacher.vocab_size, draws, exact, entries)
    return Measured(tokens, kept(logits, counting_P), figures)


def read_draws_of(reader: CacheReader, position: int, logits: LogitsSample) -> DrawsSample:
    """The draws of the rows of ``logits``. Raises CorruptCacheError when they are of others."""
    draws = reader.read_draws(position)
    if not np.array_equal(draws.positions, logits.positions):
        raise CorruptCacheError(f"{reader.where(position, 'draws')}: its rows are not those of the logits")
    return draws


def kept(logits: LogitsSample, keep_P: np.ndarray) -> LogitsSample:
    """These rows of a sample: ``keep_P`` is bool or int."""
    rows = ("positions", "counts", "ids", "logprobs", "next_logprob", "log_partition")
    return replace(logits, **{name: getattr(logits, name)[keep_P] for name in rows})


def perplexity(mean_surprise: float) -> float:
    """exp of it, but no number that is too large for a float."""
    return math.exp(min(mean_surprise, 700.0))


def row_figures(
    logits: LogitsSample,
    counting_P: np.ndarray,
    vocab_size: int,
    draws: DrawsSample | None = None,
    exact: int | None = None,
    entries: int | None = None,
) -> RowFigures:
    """The figures of the rows ``counting_P`` (bool [P]), each of which a token follows.

    With a rest r over n tokens, a row's entropy is that of its entries and one bucket, and r times that within the
    bucket, which is between 0 and log n.
    """
    logits = kept(logits, counting_P)
    probabilities_PK = np.exp(logits.logprobs.astype(np.float64))
    coverage_P = np.minimum(probabilities_PK.sum(axis=1), 1)
    if draws is None or exact is None:
        entropy_P = np.maximum(bucket_entropy(replace(logits, logprobs=logits.logprobs[:, :entries])), 0)
        outside_P = np.maximum(vocab_size - logits.counts, 1)
        at_most_P = np.maximum(bucket_entropy(logits), 0) + (1 - coverage_P) * np.log(outside_P)
    else:
        entropy_P = at_most_P = draws.entropy[counting_P, exact].astype(np.float64)
    return RowFigures(
        positions=logits.positions,
        entropy=np.minimum(entropy_P, np.log(vocab_size)),
        at_most=np.minimum(at_most_P, np.log(vocab_size)),
        top1=np.minimum(probabilities_PK[:, 0], 1),
        coverage=coverage_P,
        surprise=np.maximum(-logits.next_logprob.astype(np.float64), 0),
    )
