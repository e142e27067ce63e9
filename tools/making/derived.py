"""Making a cache of others: shards of chosen samples, and a manifest that says what the cache was made of."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.derivation import Derivation, SourceCache
from schemas.errors import CorruptCacheError
from schemas.manifest import Manifest, MemberIndex, ShardEntry, ShardIndex, Signal, Unit
from schemas.strict import FORMAT_MINOR
from teacher_cache.codec.bundles import bundle_sizes
from teacher_cache.shards.marks import tar_name, totals_of, write_mark
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import payload_problem
from teacher_cache.shards.writer import ShardWriter, check_tars
from tools.checking.tars import check_file

READ_BYTES = 1 << 23  # of one request, if a single payload is not larger


def source_of(manifest: Manifest) -> SourceCache:
    """How a cache is named by those made of it."""
    return SourceCache(
        manifest_sha256=manifest.digest(),
        samples=manifest.totals.samples,
        tokens=manifest.totals.tokens,
        derived=manifest.derived,
    )


def derived_manifest(
    base: Manifest, shards: Sequence[ShardEntry], derived: Derivation, rewritten: bool, **changes: Any
) -> Manifest:
    """The manifest of a complete cache of these shards, which is like ``base`` but for ``changes``.

    ``rewritten``: whether any shard's tars were written anew, and so are of the newest format.
    """
    units = [
        Unit(name=entry.name, samples=entry.samples, tokens=entry.tokens, tokens_file=entry.files["tokens"])
        for entry in shards
    ]
    lists = {"units": units, "shards": list(shards), "shard_table": None, "totals": totals_of(shards)}
    if rewritten:
        changes["format_minor"] = FORMAT_MINOR
    return base.model_copy(update={**lists, "complete": True, "derived": derived, "sha256": "", **changes})


@dataclass(frozen=True)
class Part:
    """Samples of one shard: its checked index, and which of them, rising."""

    index: ShardIndex
    rows: Sequence[int]


def as_it_is(part: Part, row: int, signal: Signal, payload: bytes) -> bytes:
    """A payload that does not change."""
    return payload


def copy_samples(
    source: Storage,
    target: Storage,
    index: ShardIndex,
    rows: Sequence[int],
    signals: Sequence[Signal],
    name: str,
    owner: str = "",
) -> ShardEntry:
    """Write a shard ``name`` of the samples ``rows`` (rising) of another one; payloads stay as they are.

    ``index`` is that other shard's, checked; ``owner`` as of ``Storage.staged``. Raises CorruptCacheError when a
    payload's checksum is wrong.
    """
    return join_parts(source, target, [Part(index, rows)], signals, name, index.table, owner=owner)


def join_parts(
    source: Storage,
    target: Storage,
    parts: Sequence[Part],
    signals: Sequence[Signal],
    name: str,
    table: str,
    recode: Callable[[Part, int, Signal, bytes], bytes] = as_it_is,
    owner: str = "",
) -> ShardEntry:
    """Write a shard ``name`` of samples of several others, whose indexes either all tell layers or none does.

    ``table``: digest of the code table that its token ids are coded with, once ``recode(part, row, signal, payload)``
    made a sample's payload in the new shard of that in the old. Raises CorruptCacheError as ``copy_samples``.
    """
    for part in parts:
        check_tars_without_digests(source, part.index, signals)
    samples = [(part.index, row) for part in parts for row in part.rows]
    unit = Unit(
        name=name,
        samples=len(samples),
        tokens=sum(index.num_tokens[row] for index, row in samples),
        tokens_file=parts[0].index.signals["tokens"].file,
    )
    with ShardWriter(target, unit, signals, owner, bundles_of(parts)) as shard:
        for signal in signals:
            for part in parts:
                for row, payload in zip(part.rows, read_payloads(source, part.index, signal, part.rows), strict=True):
                    shard.add(signal, part.index.keys[row], recode(part, row, signal, payload))
    layers = [index.layers[row] for index, row in samples if index.layers is not None]
    joined = ShardIndex(
        name=name,
        keys=[index.keys[row] for index, row in samples],
        num_tokens=[index.num_tokens[row] for index, row in samples],
        layers=layers if len(layers) == len(samples) else None,
        table=table,
        signals=shard.indexes(),
    )
    check_tars(target, joined)
    return write_mark(target, joined, owner)


def check_tars_without_digests(source: Storage, index: ShardIndex, signals: Sequence[Signal]) -> None:
    """Hold whole tars of a folder against their sha256, where the index cannot tell whose payload one is (format 1.0).

    The new index will vouch for what is taken. Raises CorruptCacheError.
    """
    for signal in signals:
        if source.is_local and index.signals[signal].digests is None:
            check_file(source, tar_name(index.name, signal), index.signals[signal].file)


def bundles_of(parts: Sequence[Part]) -> list[int] | None:
    """Samples of each bundle of a shard of these parts: None unless one of them has bundles."""
    if all(part.index.signals["tokens"].bundles is None for part in parts):
        return None
    return bundle_sizes(part.index.num_tokens[row] for part in parts for row in part.rows)


def read_payloads(storage: Storage, index: ShardIndex, signal: Signal, rows: Sequence[int]) -> Iterator[bytes]:
    """The verified payloads of these samples (rising) of a shard, neighbours by one request."""
    member, name = index.signals[signal], tar_name(index.name, signal)
    for run in _neighbours(member, rows):
        start = member.offsets[run[0]]
        data = storage.read_range(name, start, member.offsets[run[-1]] + member.sizes[run[-1]] - start)
        for row in run:
            offset = member.offsets[row] - start
            payload = data[offset : offset + member.sizes[row]]
            if problem := payload_problem(payload, member, row):
                raise CorruptCacheError(f"{storage.where(name)}: sample {index.keys[row]}: {problem}")
            yield payload


def _neighbours(member: MemberIndex, rows: Sequence[int]) -> Iterator[list[int]]:
    """Runs of rows that follow each other, of READ_BYTES at most if they are more than one."""
    run: list[int] = []
    for row in rows:
        if run and (
            row != run[-1] + 1 or member.offsets[row] + member.sizes[row] - member.offsets[run[0]] > READ_BYTES
        ):
            yield run
            run = []
        run.append(row)
    if run:
        yield run
