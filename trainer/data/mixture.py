"""Read several caches as one: samples are numbered consecutively, cache after cache."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from schemas.errors import UserError
from schemas.manifest import TokenizerInfo
from teacher_cache.output_head import OutputHead
from teacher_cache.records import RowBatch
from teacher_cache.shards.batch import join_batches
from trainer.data.readable import Cache


class CacheMixture:
    """Several caches behind the reading interface of one. A row holds samples of one cache only."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        """Raises UserError if the caches cannot be mixed."""
        self.caches = caches
        self.manifest = caches[0].manifest
        self.signals = caches[0].signals
        self.first = np.cumsum([0, *(int(cache.shard_sizes.sum()) for cache in caches)])
        for cache in caches[1:]:
            check_alike(caches[0], cache)

    def read_rows(self, rows: Sequence[Sequence[int]], length: int | None = None) -> RowBatch:
        """As ``CacheReader.read_rows``."""
        parts, places = [], []
        spans = pairwise(self.first.tolist())
        for number, (cache, (first, end)) in enumerate(zip(self.caches, spans, strict=True), start=1):
            own = [r for r, row in enumerate(rows) if row and first <= row[0] < end]
            if own:
                part = cache.read_rows([[sample - first for sample in rows[r]] for r in own], length)
                if part.classes is not None:
                    part = replace(part, classes=part.classes * np.int16(number))
                parts.append(part)
                places.append(np.array(own))
        if len(parts) == 1 and len(places[0]) == len(rows):
            return parts[0]
        if not parts:  # rows without a sample
            return self.caches[0].read_rows(rows, length)
        return join_batches(parts, places, len(rows))

    def fetch_ahead(self, positions: np.ndarray) -> None:
        """Prefetch the shards of these samples."""
        for cache, (first, end) in zip(self.caches, pairwise(self.first.tolist()), strict=True):
            own = positions[(positions >= first) & (positions < end)]
            if len(own):
                cache.fetch_ahead(own - first)

    def read_head(self) -> OutputHead:
        """The teacher's output head, which is the same for all."""
        return self.caches[0].read_head()

    def close(self) -> None:
        """Release files."""
        for cache in self.caches:
            cache.close()


def read_as_one(caches: Sequence[Cache]) -> Cache | CacheMixture:
    """A single cache as it is, several as a mixture. Raises UserError if they cannot be mixed."""
    return caches[0] if len(caches) == 1 else CacheMixture(caches)


def digest_of(caches: Sequence[Cache]) -> str:
    """Digest of the caches' present state: that of the manifest, or one over those of several."""
    digests = [cache.manifest.digest() for cache in caches]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def names_tokens(tokenizer: TokenizerInfo) -> tuple[str, int]:
    """Fingerprint and size of the vocabulary: what maps ids to tokens. Tokenizer files and templates may differ."""
    return tokenizer.fingerprint, tokenizer.vocab_size


def check_alike(first: Cache, other: Cache) -> None:
    """Raise UserError unless two caches have the same tokenizer, logits settings and settings of the signals read."""
    ours, theirs = first.manifest, other.manifest
    if names_tokens(ours.tokenizer) != names_tokens(theirs.tokenizer):
        raise UserError(
            f"data.cache: {other.url}: tokenizer {theirs.tokenizer.fingerprint[:12]}… differs from that of "
            f"{first.url}, {ours.tokenizer.fingerprint[:12]}…; mix caches of one tokenizer"
        )
    facts = {
        "teacher.vocab_size": (ours.teacher.vocab_size, theirs.teacher.vocab_size),
        "capture.logits": (ours.capture.logits, theirs.capture.logits),
    }
    for signal in first.signals:
        if signal not in ("tokens", "logits"):
            facts[f"capture.{signal}"] = (getattr(ours.capture, signal), getattr(theirs.capture, signal))
    if {"hidden", "final"} & set(first.signals):
        facts["teacher.hidden_size"] = (ours.teacher.hidden_size, theirs.teacher.hidden_size)
        facts["teacher.num_layers"] = (ours.teacher.num_layers, theirs.teacher.num_layers)
    if "final" in first.signals:
        facts["head"] = (ours.head, theirs.head)
    for name, (wanted, found) in facts.items():
        if wanted != found:
            raise UserError(
                f"data.cache: {other.url}: {name} is {found}, that of {first.url} is {wanted}; mix caches that store "
                "the same"
            )
