"""Logits and draws of a cache coded anew: fewer entries a row, coarser log-probabilities, one code table for all."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import numpy as np

from schemas.cache_config import CodecConfig
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest, Signal
from teacher_cache.codec.draws import DrawsCodec
from teacher_cache.codec.encoders import make_code_table
from teacher_cache.codec.logits import LogitsCodec
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.records import Captured, DrawsSample, LogitsSample
from teacher_cache.shards.marks import read_table, tar_name
from teacher_cache.shards.storage import Storage
from tools.making.derived import Part, read_payloads

MAX_OPEN_TABLES = 4  # each takes megabytes
MOST_STEPS = {"float32": 1024, "float16": 32, "bfloat16": 4}
"""Steps a nat that floats are exact enough for: at -64 nat their error is at most half a step."""
FEWER_BITS = {("float32", "float16"), ("float32", "bfloat16"), ("float16", "bfloat16")}
Sample = TypeVar("Sample")


def check_not_finer(old: CodecConfig, new: CodecConfig) -> None:
    """Raise UserError when ``new`` says of log-probabilities more than ``old`` keeps."""
    steps, most = new.logprob_steps_per_nat, MOST_STEPS.get(old.logprobs, old.logprob_steps_per_nat)
    if new.logprobs == "steps" and steps > most:
        raise UserError(
            f"codec.logprob_steps_per_nat: {steps}: what the cache stores ({_named(old)}) is exact enough for at most "
            f"{most} steps a nat; ask for fewer (--steps-per-nat), or cache the teacher again"
        )
    if new.logprobs not in ("steps", old.logprobs) and (old.logprobs, new.logprobs) not in FEWER_BITS:
        raise UserError(
            f"codec.logprobs: {new.logprobs}: not coarser than what the cache stores ({_named(old)}), so it would take "
            "more room and be no more exact; cache the teacher again with this setting"
        )


def _named(codec: CodecConfig) -> str:
    return f"steps of 1/{codec.logprob_steps_per_nat} nat" if codec.logprobs == "steps" else codec.logprobs


def first_entries(sample: LogitsSample, k: int) -> LogitsSample:
    """The likeliest ``k`` entries of every row; all else as it was."""
    return replace(sample, counts=sample.counts.clip(max=k), ids=sample.ids[:, :k], logprobs=sample.logprobs[:, :k])


class Recoder:
    """Makes payloads of the cache ``new`` of those of ``old``, which is at ``source``; ``use_table`` first."""

    def __init__(self, source: Storage, old: Manifest, new: Manifest) -> None:
        self._source, self._old, self._new = source, old, new
        self._decoders = lru_cache(MAX_OPEN_TABLES)(self._open)

    def code_table(self, parts: Sequence[Part]) -> np.ndarray:
        """A code table (uint32 [V]) made from the ids of these samples."""
        return make_code_table(self._captured(parts), self._old.teacher.vocab_size)

    def use_table(self, table: np.ndarray) -> None:
        """Code token ids with ``table``."""
        self._logits, self._draws = _codecs(self._new, CodeTable(table))

    def __call__(self, part: Part, row: int, signal: Signal, payload: bytes) -> bytes:
        """A sample's payload in the new cache; of signals without token ids as it is. Raises CorruptCacheError."""
        if signal == "logits":
            return self._logits.encode(self._read_logits(part, row, payload))
        if signal == "draws" and self._draws is not None:
            return self._draws.encode(self._read_draws(part, row, payload))
        return payload

    def _read_logits(self, part: Part, row: int, payload: bytes) -> LogitsSample:
        codec, _ = self._decoders(part.index.table)
        sample = self._decoded(part, row, "logits", payload, codec.decode)
        return first_entries(sample, self._new.capture.logits.k)

    def _read_draws(self, part: Part, row: int, payload: bytes) -> DrawsSample:
        _, codec = self._decoders(part.index.table)
        assert codec is not None
        return self._decoded(part, row, "draws", payload, codec.decode)

    def _captured(self, parts: Sequence[Part]) -> Iterator[Captured]:
        for part in parts:
            draws: Iterator[bytes] = iter(())
            if self._old.capture.draws is not None:
                draws = read_payloads(self._source, part.index, "draws", part.rows)
            logits = read_payloads(self._source, part.index, "logits", part.rows)
            for row, payload in zip(part.rows, logits, strict=True):
                drawn = next(draws, None)
                yield Captured(
                    self._read_logits(part, row, payload),
                    draws=None if drawn is None else self._read_draws(part, row, drawn),
                )

    def _open(self, digest: str) -> "tuple[LogitsCodec, DrawsCodec | None]":
        table = read_table(self._source, digest, self._old.teacher.vocab_size)
        return _codecs(self._old, CodeTable(table))

    def _decoded(
        self, part: Part, row: int, signal: Signal, payload: bytes, decode: Callable[[bytes, int], Sample]
    ) -> Sample:
        try:
            return decode(payload, part.index.num_tokens[row])
        except CorruptCacheError as error:
            where = self._source.where(tar_name(part.index.name, signal))
            raise CorruptCacheError(f"{where}: sample {part.index.keys[row]}: {error}") from None


def _codecs(manifest: Manifest, table: CodeTable) -> tuple[LogitsCodec, DrawsCodec | None]:
    """The codecs of what holds token ids."""
    capture, codec = manifest.capture, manifest.codec
    draws = None if capture.draws is None else DrawsCodec(capture.draws, codec, table)
    return LogitsCodec(capture.logits, codec, table), draws
