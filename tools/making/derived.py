"""Building blocks for derived caches: shards of chosen samples, and a manifest with the derivation."""

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

READ_BYTES = 1 << 23  # maximum of one request, unless a single payload is larger


def source_of(manifest: Manifest) -> SourceCache:
    """A cache's entry in the derivation of caches made from it."""
    return SourceCache(
        manifest_sha256=manifest.digest(),
        samples=manifest.totals.samples,
        tokens=manifest.totals.tokens,
        derived=manifest.derived,
    )


def derived_manifest(
    base: Manifest, shards: Sequence[ShardEntry], derived: Derivation, rewritten: bool, **changes: Any
) -> Manifest:
    """The manifest of a complete cache of ``shards``: ``base`` with ``changes``.

    ``rewritten``: whether any tars were rewritten, which makes them the newest format version.
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
class ShardSlice:
    """Chosen samples of one shard."""

    index: ShardIndex  # checked
    rows: Sequence[int]  # the samples' places in the index, increasing


def unchanged(part: ShardSlice, row: int, signal: Signal, payload: bytes) -> bytes:
    """The identity, as a ``recode``."""
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
    """Write the samples ``rows`` (increasing) of a shard to a new shard ``name``, payloads unchanged.

    ``index``: the source shard's, checked; ``owner``: see ``Storage.staged``. Raises CorruptCacheError when a payload's
    checksum is wrong.
    """
    return join_parts(source, target, [ShardSlice(index, rows)], signals, name, index.table, owner=owner)


def join_parts(
    source: Storage,
    target: Storage,
    parts: Sequence[ShardSlice],
    signals: Sequence[Signal],
    name: str,
    table: str,
    recode: Callable[[ShardSlice, int, Signal, bytes], bytes] = unchanged,
    owner: str = "",
) -> ShardEntry:
    """Join samples of several shards into a new shard ``name``; all of their indexes list layers, or none does.

    ``recode(part, row, signal, payload)`` turns a sample's old payload into the new one; ``table``: digest of the code
    table of the new payloads' token ids. Raises CorruptCacheError as ``copy_samples``.
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
    """Check the sha256 of whole local tars whose index has no digests of single payloads (format 1.0).

    The new index will vouch for the copied payloads. Raises CorruptCacheError.
    """
    for signal in signals:
        if source.is_local and index.signals[signal].digests is None:
            check_file(source, tar_name(index.name, signal), index.signals[signal].file)


def bundles_of(parts: Sequence[ShardSlice]) -> list[int] | None:
    """Samples per bundle of a shard joined from ``parts``; None unless one of them has bundles."""
    if all(part.index.signals["tokens"].bundles is None for part in parts):
        return None
    return bundle_sizes(part.index.num_tokens[row] for part in parts for row in part.rows)


def read_payloads(storage: Storage, index: ShardIndex, signal: Signal, rows: Sequence[int]) -> Iterator[bytes]:
    """The verified payloads of the samples ``rows`` (increasing) of a shard; adjacent ones are read in one request."""
    member, name = index.signals[signal], tar_name(index.name, signal)
    for run in _contiguous_runs(member, rows):
        start = member.offsets[run[0]]
        data = storage.read_range(name, start, member.offsets[run[-1]] + member.sizes[run[-1]] - start)
        for row in run:
            offset = member.offsets[row] - start
            payload = data[offset : offset + member.sizes[row]]
            if problem := payload_problem(payload, member, row):
                raise CorruptCacheError(f"{storage.where(name)}: sample {index.keys[row]}: {problem}")
            yield payload


def _contiguous_runs(member: MemberIndex, rows: Sequence[int]) -> Iterator[list[int]]:
    """Runs of consecutive rows, each a single row or at most READ_BYTES."""
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
