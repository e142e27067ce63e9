"""Encoding, writing and committing units in a thread of their own, while the engine scores the next sequences."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from schemas.manifest import Manifest, MemberIndex, ShardIndex, Unit
from teacher_cache.codec.encoders import Encoders, make_code_table
from teacher_cache.codec.permutation import CodeTable, encode_table, table_digest, table_path
from teacher_cache.records import Captured, TokenSample
from teacher_cache.shards.head_file import read_head
from teacher_cache.shards.marks import committed, read_mark, read_table, write_mark
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.writer import ShardWriter, check_tars
from teacher_cache.teacher_head import check_rebuilt

MAX_PENDING = 2  # parts that wait to be written: bounds the signals held in memory


@dataclass
class _Open:
    """The unit that is being written."""

    unit: Unit
    tokens_index: MemberIndex
    shard: ShardWriter
    storage: Storage
    keys: list[str] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    rows: int = 0  # of the logits whose entropy is known
    entropy: float = 0.0  # nats, sum over these rows
    waiting: list[tuple[str, Captured]] = field(default_factory=list)  # for the code table


class UnitWriter:
    """Writes one unit after the other: ``begin``, ``add`` as often as there are parts, ``commit``.

    Use as a context manager. The calls return at once unless too much is pending; what went wrong in the thread is
    raised by a later call, or at the end. A unit that is not committed leaves nothing behind.
    """

    def __init__(
        self, storage: Storage, plan: Manifest, owner: str, on_commit: Callable[[Unit, int, float], None]
    ) -> None:
        """``on_commit`` is called in the thread with each committed unit, its rows and the sum of their entropies."""
        self._storage = storage
        self._plan = plan
        self._owner = owner
        self._on_commit = on_commit
        self._encoders = Encoders(plan)
        self._unchecked_head = None if plan.capture.final is None else read_head(storage, plan)
        self._table = ""  # digest
        self._open: _Open | None = None
        self._failed = False
        self._pool = ThreadPoolExecutor(1, "write")
        self._pending: deque[Future[None]] = deque()

    def begin(self, unit: Unit, tokens_index: MemberIndex, storage: Storage | None = None) -> None:
        """Start a unit, whose tokens are written already; ``storage``: the place under the unit's lease."""
        self._submit(self._begin, unit, tokens_index, storage or self._storage)

    def add(self, sequences: Sequence[TokenSample], captured: Sequence[Captured]) -> None:
        """Write the unit's next sequences."""
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

    def _submit(self, task: Callable[..., None], *arguments: object) -> None:
        while self._pending and (self._pending[0].done() or len(self._pending) > MAX_PENDING):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._run, task, *arguments))

    def _run(self, task: Callable[..., None], *arguments: object) -> None:
        """Do a task, unless one before it failed: what follows a failure must not be written."""
        if self._failed:
            return
        self._failed = True
        task(*arguments)
        self._failed = False

    def _begin(self, unit: Unit, tokens_index: MemberIndex, storage: Storage) -> None:
        bundles = None if tokens_index.bundles is None else tokens_index.bundles.samples
        shard = ShardWriter(storage, unit, self._plan.capture.signals, self._owner, bundles)
        self._open = _Open(unit, tokens_index, shard, storage)
        shard.__enter__()

    def _add(self, sequences: Sequence[TokenSample], captured: Sequence[Captured]) -> None:
        """Write the sequences' signals, but those with token ids only if there is a code table already."""
        is_open = self._opened()
        for sample, signals in zip(sequences, captured, strict=True):
            if self._unchecked_head is not None:
                check_rebuilt(signals, self._unchecked_head, self._plan)
                self._unchecked_head = None
            is_open.keys.append(sample.key)
            is_open.num_tokens.append(len(sample.input_ids))
            is_open.layers.append(sample.layer)
            if signals.entropy is not None:
                is_open.rows += len(signals.entropy)
                is_open.entropy += float(signals.entropy.sum(dtype=np.float64))
            is_open.waiting.append((sample.key, Captured(signals.logits, draws=signals.draws)))
            for signal, payload in self._encoders.encode_others(signals):
                is_open.shard.add(signal, sample.key, payload)
        if self._table:
            self._write_waiting(is_open)

    def _commit(self) -> None:
        is_open = self._opened()
        if not self._table:
            table, self._table = self._code_table(signals for _, signals in is_open.waiting)
            self._encoders.use_table(CodeTable(table))
        self._write_waiting(is_open)
        is_open.shard.__exit__(None, None, None)
        self._open = None
        index = ShardIndex(
            name=is_open.unit.name,
            keys=is_open.keys,
            num_tokens=is_open.num_tokens,
            layers=is_open.layers,
            table=self._table,
            signals={"tokens": is_open.tokens_index, **is_open.shard.indexes()},
        )
        check_tars(is_open.storage, index)
        write_mark(is_open.storage, index, self._owner)
        self._on_commit(is_open.unit, is_open.rows, is_open.entropy)

    def _write_waiting(self, is_open: _Open) -> None:
        for key, signals in is_open.waiting:
            for signal, payload in self._encoders.encode_ids(signals):
                is_open.shard.add(signal, key, payload)
        is_open.waiting.clear()

    def _code_table(self, scored: Iterable[Captured]) -> tuple[np.ndarray, str]:
        """The code table in use in this cache, or one made from the first scored unit; and its digest."""
        vocab_size = self._plan.teacher.vocab_size
        for shard in committed(self._storage, self._plan):
            digest = read_mark(self._storage, shard).table
            return read_table(self._storage, digest, vocab_size), digest
        table = make_code_table(scored, vocab_size)
        digest = table_digest(table)
        self._storage.write(table_path(digest), encode_table(table), self._owner)
        return table, digest

    def _abandon(self) -> None:
        """Remove what was written of a unit that will not be committed."""
        if self._open is not None:
            error = RuntimeError("the unit is abandoned")
            self._open.shard.__exit__(type(error), error, None)

    def _opened(self) -> _Open:
        assert self._open is not None
        return self._open
