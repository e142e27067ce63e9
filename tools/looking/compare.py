"""``cache-tools compare``: two teachers on the same text, row by row.

Made for the claim that a lighter teacher has the lower entropy and teaches better: the first half can be read here.
Samples are those that both caches have (same key: same tokens, same loss mask), rows those that both store. Entropies
are comparable: exact where both caches store it, else both are lower bounds from equally many entries a row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest
from teacher_cache.records import LogitsSample
from teacher_cache.shards.marks import up_to_date_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.looking.decoration import DecorativeIds, decorative_tokens
from tools.looking.divergence import Divergences, divergences
from tools.looking.figures import Measured, exact_column, kept, measure, perplexity, signals_for
from tools.looking.sampling import choose, common_samples, read_each
from tools.looking.tally import Groups, Tally

MOST_KL = 32.0  # nats; what is above is counted as this in quantiles, and as it is in means


class PairedMean:
    """The mean over rows of a difference, and its standard error: samples are independent, rows of one are not."""

    def __init__(self) -> None:
        self._n = self._samples = 0
        self._sum = self._sum_squares = self._sum_times_n = self._n_squares = 0.0

    def add(self, differences: np.ndarray) -> None:
        """Add the rows of one sample."""
        n, total = len(differences), float(differences.sum())
        self._samples += 1
        self._n += n
        self._sum += total
        self._sum_squares += total * total
        self._sum_times_n += total * n
        self._n_squares += float(n) * n

    def summary(self) -> dict[str, float | None]:
        """``mean``, and ``standard_error`` (None of a single sample): that of a ratio of sums over samples."""
        mean = self._sum / max(1, self._n)
        if self._samples < 2 or self._n == 0:
            return {"mean": mean, "standard_error": None}
        squares = max(0.0, self._sum_squares - 2 * mean * self._sum_times_n + mean * mean * self._n_squares)
        return {
            "mean": mean,
            "standard_error": math.sqrt(squares * self._samples / (self._samples - 1)) / self._n,
        }


class Teacher:
    """What one of the two is like."""

    def __init__(self, manifest: Manifest) -> None:
        self.rows = {
            "entropy": Tally(math.log(manifest.teacher.vocab_size)),
            "top1": Tally(1.0),
            "coverage": Tally(1.0),
        }
        self.surprise = self.support = self.decorative_mass = self.at_most = 0.0

    def add(self, sample: Measured, decorative_V: np.ndarray) -> None:
        """Count the rows of a sample in; ``decorative_V`` says which ids are decorative."""
        for name, tally in self.rows.items():
            tally.add(getattr(sample.figures, name))
        self.surprise += float(sample.figures.surprise.sum())
        self.at_most += float(sample.figures.at_most.sum())
        self.support += float(sample.figures.support.sum())
        probabilities_PK = np.exp(sample.logits.logprobs.astype(np.float64))
        self.decorative_mass += float((probabilities_PK * decorative_V[sample.logits.ids]).sum())

    def summary(self) -> dict[str, Any]:
        """All figures as plain data."""
        n = max(1, self.rows["entropy"].n)
        return {
            "entropy": self.rows["entropy"].summary(),
            "entropy_at_most": self.at_most / n,
            "top1_mass": self.rows["top1"].mean,
            "effective_support": self.support / n,
            "coverage": self.rows["coverage"].mean,
            "perplexity": perplexity(self.surprise / n),
            "decorative_mass": self.decorative_mass / n,
        }


class Pair:
    """What both teachers make of the samples of one group."""

    def __init__(self, a: Manifest, b: Manifest) -> None:
        self.samples = self.response_tokens = self.decorative = self.agreeing = 0
        self.a, self.b = Teacher(a), Teacher(b)
        self.difference = PairedMean()
        self.length = Tally(max(a.corpus.settings.max_tokens, b.corpus.settings.max_tokens))
        self.kl_a_b, self.kl_b_a = Tally(MOST_KL), Tally(MOST_KL)
        self.shared_a = self.shared_b = 0.0

    def add(self, a: Measured, b: Measured, apart: Divergences, decorative_V: np.ndarray) -> None:
        """Count a sample in, of the same rows under both."""
        self.samples += 1
        response = np.flatnonzero(a.tokens.loss_mask)
        self.response_tokens += len(response)
        self.length.add(np.array([float(len(response))]))
        self.decorative += int(decorative_tokens(a.tokens)[response + 1].sum())
        self.a.add(a, decorative_V)
        self.b.add(b, decorative_V)
        self.difference.add(b.figures.entropy - a.figures.entropy)
        self.agreeing += int((a.logits.ids[:, 0] == b.logits.ids[:, 0]).sum())
        self.kl_a_b.add(apart.a_b_P)
        self.kl_b_a.add(apart.b_a_P)
        self.shared_a += float(apart.shared_a_P.sum())
        self.shared_b += float(apart.shared_b_P.sum())

    def summary(self) -> dict[str, Any]:
        """All figures as plain data."""
        n = max(1, self.kl_a_b.n)
        return {
            "samples": self.samples,
            "rows": self.kl_a_b.n,
            "a": self.a.summary() | {"mass_both_store": self.shared_a / n},
            "b": self.b.summary() | {"mass_both_store": self.shared_b / n},
            "entropy_b_minus_a": self.difference.summary(),
            "top1_agreement": self.agreeing / n,
            "kl_a_b": self.kl_a_b.summary(),
            "kl_b_a": self.kl_b_a.summary(),
            "response_length": self.length.summary(),
            "decorative_share": self.decorative / max(1, self.response_tokens),
        }


@dataclass
class Comparison:
    """Two caches compared: all samples, and those of each layer."""

    a: Manifest
    b: Manifest
    common_samples: int
    entropy_is_exact: bool
    overall: Pair = field(init=False)
    layers: Groups[Pair] = field(init=False)

    def __post_init__(self) -> None:
        self.overall = Pair(self.a, self.b)
        self.layers = Groups(lambda: Pair(self.a, self.b), "other layers")

    def summary(self) -> dict[str, Any]:
        """All figures as plain data."""
        return {
            "a": {"teacher": self.a.teacher.name, "manifest_digest": self.a.digest()},
            "b": {"teacher": self.b.teacher.name, "manifest_digest": self.b.digest()},
            "common_samples": self.common_samples,
            "entropy_is_exact": self.entropy_is_exact,
            "overall": self.overall.summary(),
            "layers": {name: pair.summary() for name, pair in sorted(self.layers.by_name.items())},
        }


class _Cache(NamedTuple):
    reader: CacheReader
    exact: int | None


def compare(
    url_a: str,
    url_b: str,
    samples: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Figures of two teachers over ``samples`` of the samples that both caches have (None: all), always the same ones.

    The text is read twice: first for which ids are decorative, of which a teacher's mass is then added up.
    Raises UserError when the tokenizers differ or no sample is in both, CorruptCacheError when a file is damaged.
    """
    manifests = [up_to_date_manifest(Storage(url)) for url in (url_a, url_b)]
    _check_tokenizers(url_a, url_b, *manifests)
    columns = [exact_column(manifest) for manifest in manifests]
    both_exact = None not in columns
    entries = None if both_exact else min(manifest.capture.logits.k for manifest in manifests)
    a, b = (
        _Cache(CacheReader(url, signals_for(column), manifest), column)
        for url, manifest, column in zip(
            (url_a, url_b), manifests, columns if both_exact else (None, None), strict=True
        )
    )
    in_a, in_b = common_samples(a.reader, b.reader)
    if not len(in_a):
        raise UserError(
            f"{url_a} ({len(a.reader)} samples) and {url_b} ({len(b.reader)} samples): no key is in both; only caches "
            "of the same texts, cut into the same sequences (corpus settings), can be compared"
        )
    chosen = choose(len(in_a), samples)
    decorative = DecorativeIds(max(manifest.teacher.vocab_size for manifest in manifests))
    total = 2 * len(chosen)
    for tokens in read_each(in_a[chosen].tolist(), a.reader.read_tokens, lambda done, _: advance(done, total)):
        decorative.add(tokens)
    decorative_V = decorative.flags()

    def measured(place: int) -> tuple[Measured, Measured]:
        first = measure(a.reader, int(in_a[place]), a.exact, entries)
        second = measure(b.reader, int(in_b[place]), b.exact, entries)
        return _same_rows(first, second, b.reader.where(int(in_b[place]), "logits"))

    found = Comparison(manifests[0], manifests[1], len(in_a), both_exact)
    codecs = manifests[0].codec, manifests[1].codec
    for first, second in read_each(chosen.tolist(), measured, lambda done, _: advance(len(chosen) + done, total)):
        apart = divergences(first.logits, second.logits, *codecs)
        for pair in (found.overall, found.layers[first.tokens.layer]):
            pair.add(first, second, apart, decorative_V)
    return found


def _check_tokenizers(url_a: str, url_b: str, a: Manifest, b: Manifest) -> None:
    if a.tokenizer.fingerprint != b.tokenizer.fingerprint:
        raise UserError(
            f"{url_a} and {url_b}: their tokenizers differ: fingerprints {a.tokenizer.fingerprint} and "
            f"{b.tokenizer.fingerprint}; distributions over different vocabularies cannot be compared row by row"
        )


def _same_rows(a: Measured, b: Measured, where: str) -> tuple[Measured, Measured]:
    """The rows that both store."""
    if not np.array_equal(a.tokens.input_ids, b.tokens.input_ids):
        raise CorruptCacheError(f"{where}: sample {b.tokens.key} has other tokens than in the first cache")
    _, in_a, in_b = np.intersect1d(a.logits.positions, b.logits.positions, assume_unique=True, return_indices=True)
    return _only(a, in_a), _only(b, in_b)


def _only(sample: Measured, rows: np.ndarray) -> Measured:
    logits: LogitsSample = kept(sample.logits, rows)
    figures = {name: values[rows] for name, values in vars(sample.figures).items()}
    return Measured(sample.tokens, logits, type(sample.figures)(**figures))
