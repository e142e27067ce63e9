"""``cache-tools compare``: two teachers on the same text, row by row.

Made to test the claim that a lighter teacher has lower entropy and teaches better; the first half can be read off here.
Compared are the samples in both caches (same key: same tokens, same loss mask) at the rows that both store. Entropies
are comparable: exact where both caches store them, else lower bounds from the same number of entries a row.
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
from tools.looking.figures import Measured, exact_column, measure, perplexity, select_rows, signals_for
from tools.looking.sampling import choose, common_samples, read_each
from tools.looking.tally import Groups, Tally

MAX_KL = 32.0  # nats; larger values are clipped in quantiles, not in means


class PairedMean:
    """Mean difference over rows, with a standard error clustered by sample: rows of one sample are dependent."""

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
        """``mean``, and ``standard_error`` of the ratio estimator over samples (None for a single sample)."""
        mean = self._sum / max(1, self._n)
        if self._samples < 2 or self._n == 0:
            return {"mean": mean, "standard_error": None}
        squares = max(0.0, self._sum_squares - 2 * mean * self._sum_times_n + mean * mean * self._n_squares)
        return {
            "mean": mean,
            "standard_error": math.sqrt(squares * self._samples / (self._samples - 1)) / self._n,
        }


class Teacher:
    """Figures of one of the two teachers."""

    def __init__(self, manifest: Manifest) -> None:
        self.rows = {
            "entropy": Tally(math.log(manifest.teacher.vocab_size)),
            "top1": Tally(1.0),
            "coverage": Tally(1.0),
        }
        self.surprise = self.support = self.decorative_mass = self.at_most = 0.0

    def add(self, sample: Measured, decorative_V: np.ndarray) -> None:
        """Add the rows of a sample; ``decorative_V``: which ids are decorative, bool [V]."""
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
    """Figures of both teachers on one group of samples."""

    def __init__(self, a: Manifest, b: Manifest) -> None:
        self.samples = self.response_tokens = self.decorative = self.agreeing = 0
        self.a, self.b = Teacher(a), Teacher(b)
        self.difference = PairedMean()
        self.length = Tally(max(a.corpus.settings.max_tokens, b.corpus.settings.max_tokens))
        self.kl_a_b, self.kl_b_a = Tally(MAX_KL), Tally(MAX_KL)
        self.shared_a = self.shared_b = 0.0

    def add(self, a: Measured, b: Measured, kl: Divergences, decorative_V: np.ndarray) -> None:
        """Add a sample, with the same rows under both teachers."""
        self.samples += 1
        response = np.flatnonzero(a.tokens.loss_mask)
        self.response_tokens += len(response)
        self.length.add(np.array([float(len(response))]))
        self.decorative += int(decorative_tokens(a.tokens)[response + 1].sum())
        self.a.add(a, decorative_V)
        self.b.add(b, decorative_V)
        self.difference.add(b.figures.entropy - a.figures.entropy)
        self.agreeing += int((a.logits.ids[:, 0] == b.logits.ids[:, 0]).sum())
        self.kl_a_b.add(kl.a_b_P)
        self.kl_b_a.add(kl.b_a_P)
        self.shared_a += float(kl.shared_a_P.sum())
        self.shared_b += float(kl.shared_b_P.sum())

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
    """Figures of two caches: over all samples, and by layer of the data mix."""

    a: Manifest
    b: Manifest
    common_samples: int
    entropy_is_exact: bool
    overall: Pair = field(init=False)
    mix_layers: Groups[Pair] = field(init=False)

    def __post_init__(self) -> None:
        self.overall = Pair(self.a, self.b)
        self.mix_layers = Groups(lambda: Pair(self.a, self.b), "other layers")

    def summary(self) -> dict[str, Any]:
        """All figures as plain data."""
        return {
            "a": {"teacher": self.a.teacher.name, "manifest_digest": self.a.digest()},
            "b": {"teacher": self.b.teacher.name, "manifest_digest": self.b.digest()},
            "common_samples": self.common_samples,
            "entropy_is_exact": self.entropy_is_exact,
            "overall": self.overall.summary(),
            "layers": {name: pair.summary() for name, pair in sorted(self.mix_layers.by_name.items())},
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
    """Compare two teachers on ``samples`` of the samples in both caches (None: all); the choice is deterministic.

    Tokens are read twice: the first pass finds the decorative ids, whose mass under each teacher the second adds up.
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
            f"{url_a} ({len(a.reader)} samples) and {url_b} ({len(b.reader)} samples): no sample key in common; give "
            "caches of the same texts, cut into the same sequences (corpus settings)"
        )
    chosen = choose(len(in_a), samples)
    decorative = DecorativeIds(max(manifest.teacher.vocab_size for manifest in manifests))
    total = 2 * len(chosen)
    for tokens in read_each(in_a[chosen].tolist(), a.reader.read_tokens, lambda done, _: advance(done, total)):
        decorative.add(tokens)
    decorative_V = decorative.flags()

    def measured(number: int) -> tuple[Measured, Measured]:
        first = measure(a.reader, int(in_a[number]), a.exact, entries)
        second = measure(b.reader, int(in_b[number]), b.exact, entries)
        return _same_rows(first, second, b.reader.where(int(in_b[number]), "logits"))

    found = Comparison(manifests[0], manifests[1], len(in_a), both_exact)
    codecs = manifests[0].codec, manifests[1].codec
    for first, second in read_each(chosen.tolist(), measured, lambda done, _: advance(len(chosen) + done, total)):
        kl = divergences(first.logits, second.logits, *codecs)
        for pair in (found.overall, found.mix_layers[first.tokens.layer]):
            pair.add(first, second, kl, decorative_V)
    return found


def _check_tokenizers(url_a: str, url_b: str, a: Manifest, b: Manifest) -> None:
    if a.tokenizer.fingerprint != b.tokenizer.fingerprint:
        raise UserError(
            f"{url_a} and {url_b}: different tokenizers, with fingerprints {a.tokenizer.fingerprint} and "
            f"{b.tokenizer.fingerprint}; give two caches with the same tokenizer: rows are compared token by token"
        )


def _same_rows(a: Measured, b: Measured, where: str) -> tuple[Measured, Measured]:
    """Both samples, reduced to the rows that both store."""
    if not np.array_equal(a.tokens.input_ids, b.tokens.input_ids):
        raise CorruptCacheError(f"{where}: sample {b.tokens.key}: its tokens differ from those in the first cache")
    _, in_a, in_b = np.intersect1d(a.logits.positions, b.logits.positions, assume_unique=True, return_indices=True)
    return _only(a, in_a), _only(b, in_b)


def _only(sample: Measured, rows: np.ndarray) -> Measured:
    logits: LogitsSample = select_rows(sample.logits, rows)
    figures = {name: values[rows] for name, values in vars(sample.figures).items()}
    return Measured(sample.tokens, logits, type(sample.figures)(**figures))
