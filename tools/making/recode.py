"""Coding anew the signals that hold token ids: fewer entries a row, coarser log-probabilities, one code table."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from schemas.cache_config import CodecConfig
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest, Signal
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.records import Captured, LogitsSample
from teacher_cache.shards.marks import read_table, tar_name
from teacher_cache.shards.storage import Storage
from teacher_cache.signals.encoders import make_code_table, side_codecs
from teacher_cache.signals.logits.codec import LogitsCodec
from teacher_cache.signals.side_signal import SideCodec
from teacher_cache.signals.side_table import SIDE_SIGNALS
from tools.making.derived import ShardSlice, read_payloads
from tools.making.tail_draws import draws_beyond

MAX_OPEN_TABLES = 4  # each takes megabytes
MOST_STEPS = {"float32": 1024, "float16": 32, "bfloat16": 4}
"""Finest steps per nat for which floats are exact enough: at -64 nat their error is at most half a step."""
FEWER_BITS = {("float32", "float16"), ("float32", "bfloat16"), ("float16", "bfloat16")}


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
        draws, k = old.capture.draws, new.capture.logits.k
        self._redraws = draws is not None and draws.region == "tail" and k < old.capture.logits.k

    def code_table(self, parts: Sequence[ShardSlice]) -> np.ndarray:
        """Build a code table (uint32 [V]) from the token ids of these samples."""
        return make_code_table(self._captured(parts), self._old.teacher.vocab_size)

    def use_table(self, table: np.ndarray) -> None:
        """Code token ids with ``table``."""
        self._encoders = _codecs(self._new, CodeTable(table))

    def __call__(self, part: ShardSlice, row: int, signal: Signal, payload: bytes) -> bytes:
        """A sample's payload in the new cache; of signals without token ids as it is. Raises CorruptCacheError."""
        if signal not in self._encoders:
            return payload
        return self._encoders[signal].encode(self._decoded(part, row, signal, payload))

    def _captured(self, parts: Sequence[ShardSlice]) -> Iterator[Captured]:
        side = [name for name in self._old.capture.side_settings if SIDE_SIGNALS[name].has_ids]
        for part in parts:
            payloads = [read_payloads(self._source, part.index, signal, part.rows) for signal in ("logits", *side)]
            for row, (logits, *others) in zip(part.rows, zip(*payloads, strict=True), strict=True):
                yield Captured(
                    self._decoded(part, row, "logits", logits),
                    {name: self._decoded(part, row, name, other) for name, other in zip(side, others, strict=True)},
                )

    def _open(self, digest: str) -> dict[str, SideCodec[Any]]:
        table = read_table(self._source, digest, self._old.teacher.vocab_size)
        return _codecs(self._old, CodeTable(table))

    def _decoded(self, part: ShardSlice, row: int, signal: Signal, payload: bytes) -> Any:
        """A sample's record of a signal with token ids, with the new cache's number of entries, and their tail."""
        sample, k = self._stored(part, row, signal, payload), self._new.capture.logits.k
        if signal == "logits":
            return first_entries(sample, k)
        if signal == "draws" and self._redraws:
            (logits,) = read_payloads(self._source, part.index, "logits", [row])
            stored = self._stored(part, row, "logits", logits)
            return draws_beyond(k, part.index.keys[row], stored, sample, self._old.capture)
        return sample

    def _stored(self, part: ShardSlice, row: int, signal: Signal, payload: bytes) -> Any:
        """A sample's record as the old cache stores it. Raises CorruptCacheError."""
        try:
            return self._decoders(part.index.table)[signal].decode(payload, part.index.num_tokens[row])
        except CorruptCacheError as error:
            where = self._source.where(tar_name(part.index.name, signal))
            raise CorruptCacheError(f"{where}: sample {part.index.keys[row]}: {error}") from None


def _codecs(manifest: Manifest, table: CodeTable) -> dict[str, SideCodec[Any]]:
    """The codecs of what holds token ids, by signal."""
    logits = LogitsCodec(manifest.capture.logits, manifest.codec, table)
    return {"logits": logits, **side_codecs(manifest, table)}
