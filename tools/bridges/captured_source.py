"""Base class of imports whose files do not say which model was captured: teacher, tokenizer, samples of token ids."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import xxhash

from schemas.cache_config import (
    CaptureConfig,
    CodecConfig,
    CorpusConfig,
    Dtype,
    LogitsCapture,
    Provenance,
    SourceConfig,
    TeacherConfig,
)
from schemas.derivation import Derivation
from schemas.errors import UserError
from schemas.manifest import MAX_SEQUENCE_TOKENS, CorpusCounts, CorpusInfo, Manifest
from teacher_cache.corpus.token_spans import ByteTokenizer
from teacher_cache.plan import NO_COUNTS, NO_TOTALS
from teacher_cache.records import TokenSample
from teacher_cache.teacher import load_tokenizer
from teacher_cache.tokenizer import describe_tokenizer
from tools.bridges.import_sources import Source
from tools.bridges.origin import describe, fingerprint
from tools.bridges.spelling import readable

LEAST_REST = 1e-7  # floor on the probability outside a row's stored entries


@dataclass(frozen=True)
class CapturedOptions:
    """Facts that the files leave out."""

    teacher: str | None = None  # folder
    teacher_name: str | None = None
    teacher_dtype: Dtype = "bfloat16"
    tokenizer: str | None = None  # folder; None: the teacher's
    compression_config: str | None = None  # DistillKit's; None: the one in the data set's folder
    layer: str = "base"


class CapturedSource(Source):
    """Files with the token ids and the likeliest tokens of a teacher that is given beside them."""

    system = ""  # whose files these are, for messages
    format: Literal["parquet", "jsonl"] = "parquet"

    def __init__(self, files: list[Path], options: CapturedOptions, tokens_per_shard: int) -> None:
        """Raises UserError when the teacher or its tokenizer cannot be found."""
        super().__init__(files)
        self._options = options
        self._tokens_per_shard = tokens_per_shard
        if options.teacher is None:
            raise UserError(
                f"--teacher: {self.system} do not say which model was captured; give its folder (its "
                "configuration and tokenizer are enough)"
            )
        config = TeacherConfig(path=options.teacher, name=options.teacher_name, dtype=options.teacher_dtype)
        self._teacher, self._has_weights = describe(config)
        self._tokenizer = load_tokenizer(config.model_copy(update={"path": options.tokenizer or options.teacher}))
        self._tokenizer_info = describe_tokenizer(self._tokenizer)
        if not self._tokenizer.is_fast:
            raise UserError(
                f"--tokenizer: {self._tokenizer.name_or_path}: not a fast tokenizer; give one with tokenizer.json"
            )
        self._spelling = ByteTokenizer(self._tokenizer)
        self._seen: Counter[bytes] = Counter()
        self._counts: Counter[str] = Counter()

    @property
    def k(self) -> int:
        """Entries of a row, at most."""
        raise NotImplementedError

    def check_k(self) -> None:
        """Raise UserError if rows have more entries than the teacher has tokens."""
        if self.k > self._teacher.vocab_size:
            raise UserError(
                f"{self.files[0]}: {self.k} entries a row, more than the {self._teacher.vocab_size} tokens of "
                f"{self._teacher.name}; give the teacher that was captured"
            )

    def plan(self) -> Manifest:
        """The manifest of an empty cache; its only temperature is 1."""
        path = self.files[0].parent.name or "files"
        sources = [SourceConfig(path=path, format=self.format, layer=self._options.layer)]
        return Manifest(
            teacher=self._teacher,
            tokenizer=self._tokenizer_info,
            corpus=CorpusInfo(
                fingerprint=fingerprint(self.files),
                settings=CorpusConfig(sources=sources, max_tokens=MAX_SEQUENCE_TOKENS),
                counts=NO_COUNTS,
            ),
            capture=CaptureConfig(logits=LogitsCapture(k=self.k, temperatures=[1.0], positions="loss_mask")),
            codec=CodecConfig(),
            provenance=Provenance(),
            tokens_per_shard=self._tokens_per_shard,
            units=[],
            complete=False,
            shards=[],
            tables={},
            totals=NO_TOTALS,
        )

    def token_sample(self, ids: np.ndarray, loss_mask: np.ndarray, source_id: str, at: str) -> TokenSample | None:
        """The sample of these token ids, int [S], with its text spelled; None where no row is in the loss mask.

        Raises UserError for an id that is not in the vocabulary; ``at``: file and row, for its message.
        """
        vocabulary = self._teacher.vocab_size
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise UserError(f"{at}: input_ids from {ids.min()} to {ids.max()}, wanted 0 to {vocabulary - 1}")
        if not loss_mask.any():
            return None
        text, start, end = readable(self._spelling.spell(ids))
        ids = ids.astype(np.uint32)
        key, layer = self._key(ids, loss_mask), self._options.layer
        return TokenSample(key, source_id, layer, text, ids, loss_mask, start, end)

    def _key(self, ids: np.ndarray, loss_mask: np.ndarray) -> str:
        """A sample key made as a corpus makes it: a hash of ids and mask, and of the occurrence if repeated."""
        content = xxhash.xxh3_128(ids.astype("<u4").tobytes() + loss_mask.tobytes())
        digest = content.digest()
        self._seen[digest] += 1
        if self._seen[digest] > 1:
            content.update(self._seen[digest].to_bytes(8, "little"))
        return content.hexdigest()

    def finished(self, manifest: Manifest, longest: int) -> Manifest:
        """``manifest`` with the corpus counts, the longest sequence, and notes on what the files left out."""
        counts = CorpusCounts(
            **NO_COUNTS.model_dump()
            | {
                "documents": self._counts["documents"],
                "too_short": self._counts["too_short"],
                "samples": manifest.totals.samples,
                "tokens": manifest.totals.tokens,
                "loss_tokens": self._counts["rows"],
            }
        )
        settings = manifest.corpus.settings.model_copy(update={"max_tokens": longest})
        corpus = manifest.corpus.model_copy(update={"counts": counts, "settings": settings})
        notes = self.notes()
        if not self._has_weights:
            notes.append("The teacher's fingerprint covers its configuration alone: its weights were not at hand.")
        derived = Derivation(action="import", sources=[], notes=" ".join(notes))
        return manifest.model_copy(update={"corpus": corpus, "derived": derived})

    def notes(self) -> list[str]:
        """Sentences on what was counted, for the manifest."""
        raise NotImplementedError


def realised(
    ids_PK: np.ndarray, logprobs_PK: np.ndarray, next_P: np.ndarray, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of the realised tokens ``next_P``, float32 [P], and at which rows it is an estimate, bool [P].

    ids_PK, logprobs_PK: entries in descending order, absent ones with id −1 and −inf. Where the token has no entry, the
    missing mass is spread evenly over all other tokens, and is at most the last entry's probability.
    """
    found_PK = ids_PK == next_P.astype(np.int64)[:, None]
    found_P, counts = found_PK.any(axis=1), (ids_PK >= 0).sum(axis=1)
    rest_P = np.maximum(1 - np.exp(logprobs_PK.astype(np.float64)).sum(axis=1), LEAST_REST)
    even_P = np.log(rest_P / np.maximum(vocab_size - counts, 1))
    last_P = logprobs_PK[np.arange(len(counts)), counts - 1]
    entry_P = np.where(found_PK, logprobs_PK, -np.inf).max(axis=1)
    return np.minimum(np.where(found_P, entry_P, np.minimum(even_P, last_P)), 0).astype(np.float32), ~found_P
