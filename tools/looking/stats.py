"""``cache-tools stats``: a teacher's certainty over a cache, by layer of the data mix and by source.

Entropies are at temperature 1, in nats. A cache stores the likeliest tokens of each row and the mass of all others. The
entropy of the stored entries plus one bucket is a lower bound of the row's; spreading the bucket evenly over the other
tokens gives the upper bound. A cache with draws at temperature 1 stores the exact entropy, which is then used. Memory
does not grow with the number of samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.manifest import Manifest
from teacher_cache.shards.marks import up_to_date_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.looking.decoration import decorative_tokens
from tools.looking.figures import Measured, exact_column, measure, perplexity, signals_for
from tools.looking.sampling import choose_samples, read_each
from tools.looking.tally import Groups, Tally

SHOWN_SOURCES = 20
POSITION_BINS = 48
MAX_SURPRISE = 64.0  # nats; larger values are clipped in quantiles, not in means


class Figures:
    """Figures of one group of samples."""

    def __init__(self, manifest: Manifest) -> None:
        most_entropy = math.log(manifest.teacher.vocab_size)
        self.samples = self.response_tokens = self.decorative = 0
        self.rows = {
            "entropy": Tally(most_entropy),
            "top1": Tally(1.0),
            "coverage": Tally(1.0),
            "surprise": Tally(MAX_SURPRISE),
        }
        self.support_sum = self.at_most = 0.0
        self.length = Tally(manifest.corpus.settings.max_tokens)

    def add(self, sample: Measured, decorative_S: np.ndarray) -> None:
        """Add a sample; ``decorative_S``: which of its tokens are decorative, bool [S]."""
        self.samples += 1
        response = np.flatnonzero(sample.tokens.loss_mask)
        self.length.add(np.array([float(len(response))]))
        self.response_tokens += len(response)
        self.decorative += int(decorative_S[response + 1].sum())
        for name, tally in self.rows.items():
            tally.add(getattr(sample.figures, name))
        self.support_sum += float(sample.figures.support.sum())
        self.at_most += float(sample.figures.at_most.sum())

    def summary(self) -> dict[str, Any]:
        """All figures as plain data. Quantiles of the effective support are those of the entropy, exponentiated."""
        entropy, surprise = self.rows["entropy"], self.rows["surprise"]
        quantiles = {name: math.exp(value) for name, value in entropy.summary().items() if name != "mean"}
        return {
            "samples": self.samples,
            "rows": entropy.n,
            "entropy": entropy.summary(),
            "entropy_at_most": self.at_most / max(1, entropy.n),
            "top1_mass": self.rows["top1"].summary(),
            "effective_support": {"mean": self.support_sum / max(1, entropy.n)} | quantiles,
            "coverage": self.rows["coverage"].summary(),
            "response_length": self.length.summary(),
            "perplexity": perplexity(surprise.mean),
            "decorative_share": self.decorative / max(1, self.response_tokens),
        }


@dataclass
class Stats:
    """Figures of a cache: over all samples read, by layer of the data mix, and by source file."""

    manifest: Manifest
    samples_in_cache: int
    entropy_is_exact: bool
    overall: Figures = field(init=False)
    mix_layers: Groups[Figures] = field(init=False)
    sources: Groups[Figures] = field(init=False)
    entropy_by_position: np.ndarray = field(init=False)  # [2, POSITION_BINS]: rows, and the sum of their entropies

    def __post_init__(self) -> None:
        def make() -> Figures:
            return Figures(self.manifest)

        self.overall = make()
        self.mix_layers = Groups(make, "other layers")
        self.sources = Groups(make, "other sources")
        self.entropy_by_position = np.zeros((2, POSITION_BINS))

    def add(self, sample: Measured) -> None:
        """Add a sample."""
        decorative_S = decorative_tokens(sample.tokens)
        source = source_file(sample.tokens.source_id)
        for figures in (self.overall, self.mix_layers[sample.tokens.layer], self.sources[source]):
            figures.add(sample, decorative_S)
        bins = sample.figures.positions.astype(np.int64) * POSITION_BINS // self.manifest.corpus.settings.max_tokens
        self.entropy_by_position[0] += np.bincount(bins, minlength=POSITION_BINS)
        self.entropy_by_position[1] += np.bincount(bins, sample.figures.entropy, minlength=POSITION_BINS)

    def largest_sources(self, most: int = SHOWN_SOURCES) -> dict[str, Figures]:
        """The sources with the most rows, by name."""
        ordered = sorted(self.sources.by_name.items(), key=lambda item: (-item[1].rows["entropy"].n, item[0]))
        return dict(ordered[:most])

    def summary(self) -> dict[str, Any]:
        """All figures as plain data."""
        return {
            "teacher": self.manifest.teacher.name,
            "manifest_digest": self.manifest.digest(),
            "samples_in_cache": self.samples_in_cache,
            "entropy_is_exact": self.entropy_is_exact,
            "overall": self.overall.summary(),
            "layers": {name: figures.summary() for name, figures in sorted(self.mix_layers.by_name.items())},
            "sources": {name: figures.summary() for name, figures in self.largest_sources().items()},
            "sources_not_shown": max(0, len(self.sources.by_name) - SHOWN_SOURCES),
        }


def source_file(source_id: str) -> str:
    """The file a sample came from: its ``source_id`` without the record number."""
    file, _, record = source_id.rpartition("#")
    return file if record[:1].isdigit() else source_id


def stats(
    url: str, samples: int | None = None, advance: Callable[[int, int], None] = lambda done, total: None
) -> Stats:
    """Figures of ``samples`` samples of a cache (None: all); the choice is deterministic.

    ``advance(samples done, samples in all)`` is called after each. Raises UserError when there is no cache at ``url``
    or it has no samples, CorruptCacheError when a file is damaged.
    """
    manifest = up_to_date_manifest(Storage(url))
    exact = exact_column(manifest)
    reader = CacheReader(url, signals_for(exact), manifest)
    chosen = choose_samples(reader, samples).tolist()
    found = Stats(manifest, len(reader), exact is not None)
    for sample in read_each(chosen, lambda number: measure(reader, number, exact), advance):
        found.add(sample)
    return found
