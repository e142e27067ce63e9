"""Re-encoding of logits and draws: fewer entries a row, coarser log-probabilities, a single code table."""

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
from tools.making.derived import ShardSlice, read_payloads

MAX_OPEN_TABLES = 4  # each takes megabytes
MOST_STEPS = {"float32": 1024, "float16": 32, "bfloat16": 4}
"""Finest steps per nat for which floats are exact enough: at -64 nat their error is at most half a step."""
FEWER_BITS = {("float32", "float16"), ("float32", "bfloat16"), ("float16", "bfloat16")}
Sample = TypeVar("Sample")


def check_not_finer(old: CodecConfig, new: CodecConfig) -> None:
    """Raise UserError when ``new`` asks for more precise log-probabilities than ``old`` stores."""
    steps, most = new.logprob_steps_per_nat, MOST_STEPS.get(old.logprobs, old.logprob_steps_per_nat)
    if new.logprobs == "steps" and steps > most:
        raise UserError(
            f"codec.logprob_steps_per_nat: {steps}, wanted at most {most}: the cache stores {_named(old)}; lower "
            "--steps-per-nat, or cache the teacher again"
        )
    if new.logprobs not in ("steps", old.logprobs) and (old.logprobs, new.logprobs) not in FEWER_BITS:
        raise UserError(
            f"codec.logprobs: {new.logprobs}: not coarser than the cache's {_named(old)}, so it would take more space "
            "without being more precise; cache the teacher again with this setting"
        )


def _named(codec: CodecConfig) -> str:
    return f"steps of 1/{codec.logprob_steps_per_nat} nat" if codec.logprobs == "steps" else codec.logprobs


def first_entries(sample: LogitsSample, k: int) -> LogitsSample:
    """``sample`` with only the likeliest ``k`` entries of every row."""
    return replace(sample, counts=sample.counts.clip(max=k), ids=sample.ids[:, :k], logprobs=sample.logprobs[:, :k])


class Recoder:
    """Re-encoder of payloads from the settings of ``old``, stored at ``source``, to those of ``new``.

    Call ``use_table`` before the first payload.
    """

    def __init__(self, source: Storage, old: Manifest, new: Manifest) -> None:
        self._source, self._old, self._new = source, old, new
        self._decoders = lru_cache(MAX_OPEN_TABLES)(self._open)

    def code_table(self, parts: Sequence[ShardSlice]) -> np.ndarray:
        """Build a code table (uint32 [V]) from the token ids of these samples."""
        return make_code_table(self._captured(parts), self._old.teacher.vocab_size)

    def use_table(self, table: np.ndarray) -> None:
        """Encode token ids with ``table`` from now on."""
        self._logits, self._draws = _codecs(self._new, CodeTable(table))

    def __call__(self, part: ShardSlice, row: int, signal: Signal, payload: bytes) -> bytes:
        """Re-encode a sample's payload; signals without token ids stay unchanged. Raises CorruptCacheError."""
        if signal == "logits":
            return self._logits.encode(self._read_logits(part, row, payload))
        if signal == "draws" and self._draws is not None:
            return self._draws.encode(self._read_draws(part, row, payload))
        return payload

    def _read_logits(self, part: ShardSlice, row: int, payload: bytes) -> LogitsSample:
        codec, _ = self._decoders(part.index.table)
        sample = self._decoded(part, row, "logits", payload, codec.decode)
        return first_entries(sample, self._new.capture.logits.k)

    def _read_draws(self, part: ShardSlice, row: int, payload: bytes) -> DrawsSample:
        _, codec = self._decoders(part.index.table)
        assert codec is not None
        return self._decoded(part, row, "draws", payload, codec.decode)

    def _captured(self, parts: Sequence[ShardSlice]) -> Iterator[Captured]:
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
        self, part: ShardSlice, row: int, signal: Signal, payload: bytes, decode: Callable[[bytes, int], Sample]
    ) -> Sample:
        try:
            return decode(payload, part.index.num_tokens[row])
        except CorruptCacheError as error:
            where = self._source.where(tar_name(part.index.name, signal))
            raise CorruptCacheError(f"{where}: sample {part.index.keys[row]}: {error}") from None


def _codecs(manifest: Manifest, table: CodeTable) -> tuple[LogitsCodec, DrawsCodec | None]:
    """The codecs of the signals with token ids: logits and, if captured, draws."""
    capture, codec = manifest.capture, manifest.codec
    draws = None if capture.draws is None else DrawsCodec(capture.draws, codec, table)
    return LogitsCodec(capture.logits, codec, table), draws
