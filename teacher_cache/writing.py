"""Encode, write and commit units in background threads while the engine scores the next sequences.

One thread writes; several encode the sequences of a part side by side, and their payloads are written in order, so the
shards do not depend on the number of threads. The encoders spend their time in compiled loops, numpy and zstd, which
release the GIL.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import ParamSpec

import numpy as np

from schemas.manifest import Manifest, MemberIndex, ShardIndex, Unit
from teacher_cache.ahead import map_ahead
from teacher_cache.codec.permutation import CodeTable, encode_table, table_digest, table_path
from teacher_cache.output_head import OutputHead
from teacher_cache.process import usable_cores
from teacher_cache.records import Captured, TokenSample
from teacher_cache.shards.head_file import read_head
from teacher_cache.shards.marks import committed, read_mark, read_table, write_mark
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.writer import ShardWriter, check_tars
from teacher_cache.signals.encoders import Encoders, Payloads, make_code_table, signals_with_ids
from teacher_cache.signals.side_table import SIDE_SIGNALS, needs_head

Arguments = ParamSpec("Arguments")
MAX_ENCODE_THREADS = 4  # by default: together they encode 200,000 tokens a second and more
MAX_PENDING = 2  # parts waiting to be written; bounds the signals held in memory


@dataclass
class _OpenUnit:
    """Unit being written."""

    unit: Unit
    tokens_index: MemberIndex
    shard: ShardWriter
    storage: Storage
    keys: list[str] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    rows: int = 0  # rows of logits with a known entropy
    entropy: float = 0.0  # nats, summed over these rows
    waiting: list[Captured] = field(default_factory=list)  # signals that need the code table


class UnitWriter:
    """Writes units one by one: ``begin``, ``add`` for each part, ``commit``.

    Use as a context manager. Calls return at once unless too much is pending; an error in the thread is raised by a
    later call or at exit. A unit that is not committed leaves no files behind.
    """

    def __init__(
        self,
        storage: Storage,
        plan: Manifest,
        owner: str,
        on_commit: Callable[[Unit, int, float], None],
        encode_threads: int | None = None,
    ) -> None:
        """``on_commit``: called in the thread with each committed unit, its rows and their summed entropy (nats).

        ``encode_threads``: default one per core, at most MAX_ENCODE_THREADS.
        """
        self._storage = storage
        self._plan = plan
        self._owner = owner
        self._on_commit = on_commit
        self._encode_threads = encode_threads or min(MAX_ENCODE_THREADS, usable_cores())
        self._encoders = Encoders(plan)
        self._unchecked_head = read_head(storage, plan) if needs_head(plan.capture) else None
        self._table = ""  # digest
        self._open_unit: _OpenUnit | None = None
        self._failed = False
        self._pool = ThreadPoolExecutor(1, "write")
        self._pending: deque[Future[None]] = deque()

    def begin(self, unit: Unit, tokens_index: MemberIndex, storage: Storage | None = None) -> None:
        """Start a unit whose tokens are already written; ``storage``: storage fenced by the unit's lease."""
        self._submit(self._begin, unit, tokens_index, storage or self._storage)

    def learn(self, captured: Sequence[Captured]) -> None:
        """Make the cache's code table from these signals, if it has none yet. Otherwise its first unit makes it."""
        self._submit(self._learn, captured)

    def add(self, sequences: Sequence[TokenSample], captured: Sequence[Captured]) -> None:
        """Add the unit's next sequences."""
        self._submit(self._add, sequences, captured)

    def commit(self) -> None:
        """Commit the unit."""
        self._submit(self._commit)

    def __enter__(self) -> "UnitWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            while kind is None and self._pending:
                self._pending.popleft().result()
        finally:
            for future in self._pending:
                future.cancel()
            self._pool.submit(self._abandon).result()
            self._pool.shutdown()

    def _submit(self, task: Callable[Arguments, None], *arguments: Arguments.args, **named: Arguments.kwargs) -> None:
        while self._pending and (self._pending[0].done() or len(self._pending) > MAX_PENDING):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._run, partial(task, *arguments, **named)))

    def _run(self, task: Callable[[], None]) -> None:
        """Run a task unless an earlier one failed: nothing may be written after a failure."""
        if self._failed:
            return
        self._failed = True
        task()
        self._failed = False

    def _learn(self, captured: Iterable[Captured]) -> None:
        if not self._table:
            table, self._table = self._code_table(captured)
            self._encoders.use_table(CodeTable(table))

    def _begin(self, unit: Unit, tokens_index: MemberIndex, storage: Storage) -> None:
        bundles = None if tokens_index.bundles is None else tokens_index.bundles.samples
        shard = ShardWriter(storage, unit, self._plan.capture.signals, self._owner, bundles)
        self._open_unit = _OpenUnit(unit, tokens_index, shard, storage)
        shard.__enter__()

    def _add(self, sequences: Sequence[TokenSample], captured: Sequence[Captured]) -> None:
        """Write the sequences' signals; those with token ids wait until there is a code table."""
        opened = self._opened()
        for sample, signals in zip(sequences, captured, strict=True):
            if self._unchecked_head is not None:
                self._check_captured(signals, self._unchecked_head)
                self._unchecked_head = None
            opened.keys.append(sample.key)
            opened.num_tokens.append(len(sample.input_ids))
            opened.layers.append(sample.layer)
            if signals.entropy is not None:
                opened.rows += len(signals.entropy)
                opened.entropy += float(signals.entropy.sum(dtype=np.float64))
        keys = [sample.key for sample in sequences]
        if self._table:
            self._write(keys, captured, self._encoders.encode)
        else:
            self._write(keys, captured, self._encoders.encode_others)
            opened.waiting += map(signals_with_ids, captured)

    def _check_captured(self, captured: Captured, head: OutputHead) -> None:
        """Raise UserError if the teacher cannot provide a signal that needs the head."""
        for name, settings in self._plan.capture.side_settings.items():
            if SIDE_SIGNALS[name].needs_head:
                SIDE_SIGNALS[name].check_captured(captured.side[name], captured.logits, settings, self._plan, head)

    def _commit(self) -> None:
        opened = self._opened()
        if not self._table:
            self._learn(opened.waiting)
            self._write(opened.keys, opened.waiting, self._encoders.encode_ids)
            opened.waiting.clear()
        opened.shard.__exit__(None, None, None)
        self._open_unit = None
        index = ShardIndex(
            name=opened.unit.name,
            keys=opened.keys,
            num_tokens=opened.num_tokens,
            layers=opened.layers,
            table=self._table,
            signals={"tokens": opened.tokens_index, **opened.shard.indexes()},
        )
        check_tars(opened.storage, index)
        write_mark(opened.storage, index, self._owner)
        self._on_commit(opened.unit, opened.rows, opened.entropy)

    def _write(self, keys: Sequence[str], captured: Sequence[Captured], encode: Callable[[Captured], Payloads]) -> None:
        """Encode sequences in several threads and append their payloads to the tars in order."""
        shard = self._opened().shard
        for key, payloads in zip(keys, map_ahead(encode, captured, self._encode_threads), strict=True):
            for signal, payload in payloads:
                shard.add(signal, key, payload)

    def _code_table(self, scored: Iterable[Captured]) -> tuple[np.ndarray, str]:
        """Code table of this cache, built from these signals if there is none, and its digest."""
        vocab_size = self._plan.teacher.vocab_size
        for shard in committed(self._storage, self._plan):
            digest = read_mark(self._storage, shard).table
            return read_table(self._storage, digest, vocab_size), digest
        table = make_code_table(scored, vocab_size)
        digest = table_digest(table)
        self._storage.write(table_path(digest), encode_table(table), self._owner)
        return table, digest

    def _abandon(self) -> None:
        """Remove the files of a unit that will not be committed."""
        if self._open_unit is not None:
            error = RuntimeError("the unit is abandoned")
            self._open_unit.shard.__exit__(type(error), error, None)

    def _opened(self) -> _OpenUnit:
        assert self._open_unit is not None
        return self._open_unit
