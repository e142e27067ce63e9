"""Write the tars of one shard. They are ignored until the shard's commit mark is written."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from schemas.errors import ConflictError
from schemas.manifest import MemberIndex, ShardIndex, Signal, Unit
from teacher_cache.codec.bundles import are_short, bundle_sizes
from teacher_cache.codec.token_records import encode_records
from teacher_cache.codec.tokens import encode_tokens
from teacher_cache.shards.marks import tar_name
from teacher_cache.shards.storage import Storage, has_content
from teacher_cache.shards.tar import TarWriter
from teacher_cache.token_batch import TokenBatch


def write_tokens(
    storage: Storage, shard: str, batch: TokenBatch, bundle_short: bool = True, owner: str = ""
) -> MemberIndex:
    """Write a shard's ``tokens`` tar, in bundles if its samples are short and ``bundle_short`` is set."""
    lengths = batch.num_tokens.tolist()
    bundles = bundle_sizes(lengths) if bundle_short and are_short(lengths) else None
    payloads = map(encode_tokens, batch.samples()) if bundles is None else encode_records(batch)
    with storage.staged(tar_name(shard, "tokens"), owner) as path, TarWriter(path, "tokens", bundles) as tar:
        for key, payload in zip(batch.keys, payloads, strict=True):
            tar.add(key, payload)
    return tar.index()


class ShardWriter:
    """Stages one tar for each of ``signals``. Add the members of each in the order of the unit's sequences."""

    def __init__(
        self,
        storage: Storage,
        unit: Unit,
        signals: Sequence[Signal],
        owner: str,
        bundles: Sequence[int] | None = None,
    ) -> None:
        """``bundles``: see ``TarWriter``; the same for all tars."""
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
        """Append a sample's payload of one signal. Raises OSError if the disk is full."""
        self._tars[signal].add(key, payload)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._open.__exit__(kind, error, trace)

    def indexes(self) -> dict[Signal, MemberIndex]:
        """The tars' indexes; call it after the files are closed."""
        return {signal: tar.index() for signal, tar in self._tars.items()}


def check_tars(storage: Storage, index: ShardIndex) -> None:
    """Raise ConflictError unless the shard's tars still match ``index``; call it before writing that as the mark.

    In a store only the sizes are compared; local files, still in the page cache, are read.
    """
    for signal, member in index.signals.items():
        name = tar_name(index.name, signal)
        size = storage.size(name)
        if size != member.file.bytes:
            found = f"{size} bytes, but {member.file.bytes} were written"
        elif storage.is_local and not has_content(storage, name, member.file):
            found = "the content differs from what was written"
        else:
            continue
        raise ConflictError(
            f"{storage.where(name)}: {found}: another program has overwritten it, so the shard is not committed; "
            "make sure that nothing else writes there, and run again"
        )
