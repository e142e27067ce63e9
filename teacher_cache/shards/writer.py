"""Writing the tars of one shard side by side. They count for nothing before the shard's commit mark is written."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from schemas.manifest import MemberIndex, Signal, Unit
from teacher_cache.shards.marks import tar_name
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import TarWriter


class ShardWriter:
    """Stages one tar for each of ``signals``. Members of each must come in the order of the unit's sequences."""

    def __init__(self, storage: Storage, unit: Unit, signals: Sequence[Signal], owner: str) -> None:
        self._storage = storage
        self._unit = unit
        self._signals = signals
        self._owner = owner
        self._tars: dict[Signal, TarWriter] = {}
        self._open = ExitStack()

    def __enter__(self) -> "ShardWriter":
        for signal in self._signals:
            path = self._open.enter_context(self._storage.staged(tar_name(self._unit.name, signal), self._owner))
            self._tars[signal] = self._open.enter_context(TarWriter(path, signal))
        return self

    def add(self, signal: Signal, key: str, payload: bytes) -> None:
        """Append a sample's payload of one signal. Raises OSError when the disk is full."""
        self._tars[signal].add(key, payload)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._open.__exit__(kind, error, trace)

    def indexes(self) -> dict[Signal, MemberIndex]:
        """Where the members lie; after the files were closed."""
        return {signal: tar.index() for signal, tar in self._tars.items()}
