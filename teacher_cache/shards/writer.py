"""Writing the tars of one shard. They count for nothing before the shard's commit mark is written."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from schemas.manifest import MemberIndex, Signal, Unit
from teacher_cache.codec.bundles import are_short, bundle_sizes
from teacher_cache.codec.token_records import encode_records
from teacher_cache.codec.tokens import encode_tokens
from teacher_cache.shards.marks import tar_name
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import TarWriter
from teacher_cache.token_batch import TokenBatch


def write_tokens(
    storage: Storage, shard: str, batch: TokenBatch, bundle_short: bool = True, owner: str = ""
) -> MemberIndex:
    """Write a shard's ``tokens`` tar, in bundles if its samples are short and that is wanted."""
    lengths = batch.num_tokens.tolist()
    bundles = bundle_sizes(lengths) if bundle_short and are_short(lengths) else None
    payloads = map(encode_tokens, batch.samples()) if bundles is None else encode_records(batch)
    with storage.staged(tar_name(shard, "tokens"), owner) as path, TarWriter(path, "tokens", bundles) as tar:
        for key, payload in zip(batch.keys, payloads, strict=True):
            tar.add(key, payload)
    return tar.index()


class ShardWriter:
    """Stages one tar for each of ``signals``. Members of each must come in the order of the unit's sequences."""

    def __init__(
        self,
        storage: Storage,
        unit: Unit,
        signals: Sequence[Signal],
        owner: str,
        bundles: Sequence[int] | None = None,
    ) -> None:
        """``bundles`` as of ``TarWriter``, the same in all tars."""
        self._storage = storage
        self._unit = unit
        self._signals = signals
        self._owner = owner
        self._bundles = bundles
        self._tars: dict[Signal, TarWriter] = {}
        self._open = ExitStack()

    def __enter__(self) -> "ShardWriter":
        for signal in self._signals:
            path = self._open.enter_context(self._storage.staged(tar_name(self._unit.name, signal), self._owner))
            self._tars[signal] = self._open.enter_context(TarWriter(path, signal, self._bundles))
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
