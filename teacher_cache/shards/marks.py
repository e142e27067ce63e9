"""Commit marks: which shards are complete, and the manifest assembled from them."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np

from schemas.errors import CorruptCacheError, UserError
from schemas.load import parse_cache_file
from schemas.manifest import MAX_SAMPLE_BYTES, FileEntry, Manifest, ShardEntry, ShardIndex, Signal, Totals
from schemas.strict import FORMAT_MINOR, FORMAT_VERSION
from teacher_cache.ahead import map_ahead
from teacher_cache.codec.permutation import decode_table, table_path
from teacher_cache.hub import HUB
from teacher_cache.shards.shard_table import store_lists, table_file, with_lists
from teacher_cache.shards.storage import (
    HEAD,
    MANIFEST,
    MAX_JSON_BYTES,
    MAX_MANIFEST_BYTES,
    TEMPORARY_PREFIX,
    VOCABULARY,
    Storage,
    check_content,
    file_entry,
)

MAX_MANIFEST_VALUES = 400_000  # 4,096 shards with all signals have 120,000
_OWN_NAME = re.compile(
    r"head\.safetensors|vocabulary\.arrow|shard-\d{6,9}(\.[a-z]+\.(tar|zst)|\.json)|tables/[0-9a-f]{64}\.(zst|arrow)|\.tmp-[A-Za-z0-9._-]*"
)


def tar_name(shard: str, signal: str) -> str:
    """File name of the tar with one signal of a shard."""
    return f"{shard}.{signal}.tar"


def mark_name(shard: str) -> str:
    """File name of a shard's index, which is also its commit mark."""
    return f"{shard}.json"


def read_manifest(storage: Storage) -> Manifest:
    """Read the cache's manifest. Raises UserError if there is none, CorruptCacheError if it is invalid."""
    return parse_manifest(read_manifest_text(storage), storage.where(MANIFEST))


def read_manifest_text(storage: Storage) -> bytes:
    """Read the cache's manifest without checking it. Raises UserError if there is none."""
    if not storage.exists(MANIFEST):
        on_hub = "; or the Hub has no such repository or revision for your HF_TOKEN" * storage.url.startswith(HUB)
        raise UserError(
            f"{storage.where(MANIFEST)}: not found, so this is not a cache; pass the folder or URL that contains "
            f"manifest.json{on_hub}"
        )
    return storage.read(MANIFEST, MAX_MANIFEST_BYTES)


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Parse a manifest. Raises UserError if its format is newer than this version, CorruptCacheError if invalid."""
    manifest = parse_cache_file(Manifest, data, where, MAX_MANIFEST_VALUES)
    if manifest.format_version > FORMAT_VERSION:
        raise UserError(
            f"{where}: format_version {manifest.format_version} is newer than {FORMAT_VERSION}, the newest supported; "
            "upgrade this package"
        )
    if manifest.format_minor > FORMAT_MINOR:
        raise UserError(
            f"{where}: format {manifest.format_version}.{manifest.format_minor} is newer than "
            f"{FORMAT_VERSION}.{FORMAT_MINOR}, the newest supported; upgrade this package"
        )
    before, _, after = data.rpartition(manifest.sha256.encode() or b"no sha256")
    found = hashlib.sha256(before + after).hexdigest()
    if manifest.sha256 != found:
        raise CorruptCacheError(
            f"{where}: its sha256 is {found}, the file says {manifest.sha256 or 'nothing'}: it was modified after it "
            "was written; restore it from its origin"
        )
    return manifest


def write_manifest(storage: Storage, manifest: Manifest, owner: str = "") -> Manifest:
    """Write ``manifest.json``, preceded by its shard table if it has one; returns the manifest as written."""
    manifest = store_lists(storage, manifest, owner).sealed()
    storage.write(MANIFEST, manifest.to_json().encode(), owner)
    return manifest


def write_mark(storage: Storage, index: ShardIndex, owner: str = "") -> ShardEntry:
    """Commit a shard, whose tars must be in place; returns its manifest entry."""
    return shard_entry(index, storage.write(mark_name(index.name), mark_text(index), owner))


def mark_text(index: ShardIndex) -> bytes:
    """The content of a shard's commit mark."""
    return (index.model_dump_json() + "\n").encode()


def read_mark(storage: Storage, shard: str) -> ShardIndex:
    """Read a shard's index. Raises CorruptCacheError."""
    data = storage.read(mark_name(shard))
    return _parse_mark(data, shard, storage.where(mark_name(shard)))


def _parse_mark(data: bytes, shard: str, where: str) -> ShardIndex:
    index = parse_cache_file(ShardIndex, data, where)
    if index.format_version > FORMAT_VERSION:
        raise CorruptCacheError(
            f"{where}: format_version {index.format_version} is newer than {FORMAT_VERSION}; upgrade this package"
        )
    if index.name != shard:
        raise CorruptCacheError(f"{where}: this is the index of {index.name}, expected {shard}")
    return index


def read_index(
    storage: Storage, manifest: Manifest, entry: ShardEntry, signals: Iterable[Signal] | None = None
) -> ShardIndex:
    """Read and check a shard's index, for reading ``signals`` (None: all that ``entry`` lists).

    Raises CorruptCacheError.
    """
    data = storage.read(mark_name(entry.name), min(entry.index.bytes, MAX_JSON_BYTES))
    return check_index(data, entry, manifest, entry.files if signals is None else signals, storage)


def check_index(
    data: bytes, entry: ShardEntry, manifest: Manifest, signals: Iterable[Signal], storage: Storage
) -> ShardIndex:
    """Parse a shard's index from the content of its mark, and check it against the manifest, for reading ``signals``.

    Raises CorruptCacheError if they disagree; this bounds a reader's allocations and offsets by what the manifest
    declares.
    """
    where = storage.where(mark_name(entry.name))
    check_content(data, entry.index, where)
    index = _parse_mark(data, entry.name, where)
    if len(index.keys) != entry.samples or sum(index.num_tokens) != entry.tokens:
        raise CorruptCacheError(
            f"{where}: {len(index.keys)} samples of {sum(index.num_tokens)} tokens, the manifest says {entry.samples} "
            f"of {entry.tokens}"
        )
    longest, limit = max(index.num_tokens), manifest.corpus.settings.max_tokens
    if longest > limit:
        raise CorruptCacheError(f"{where}: a sample of {longest} tokens, the manifest says at most {limit}")
    if longest * manifest.capture.row_bytes > MAX_SAMPLE_BYTES:
        raise CorruptCacheError(
            f"{where}: a sample of {longest} tokens at {manifest.capture.row_bytes} bytes a row exceeds the limit of "
            f"{MAX_SAMPLE_BYTES} bytes a sample"
        )
    if index.table not in manifest.tables:
        raise CorruptCacheError(f"{where}: code table {index.table} is not in the manifest")
    for signal in signals:
        _check_member(storage, index, signal, entry)
    return index


def _check_member(storage: Storage, index: ShardIndex, signal: Signal, entry: ShardEntry) -> None:
    where = storage.where(tar_name(index.name, signal))
    if signal not in index.signals or signal not in entry.files:
        raise CorruptCacheError(f"{where}: the shard has no {signal} signal")
    member = index.signals[signal]
    if member.file != entry.files[signal]:
        raise CorruptCacheError(f"{where}: index and manifest disagree on its size or checksum")
    ends = np.array(member.offsets) + np.array(member.sizes)
    if ends.max() > member.file.bytes:
        raise CorruptCacheError(f"{where}: sample {index.keys[int(ends.argmax())]} ends beyond the file")


def check_sizes(storage: Storage, entry: ShardEntry, signals: Iterable[Signal], sizes: dict[str, int]) -> None:
    """Raise CorruptCacheError unless a shard's mark and the tars of ``signals`` exist with the right sizes.

    sizes: bytes of the cache's files, ``storage.sizes()``.
    """
    files = {tar_name(entry.name, signal): entry.files[signal] for signal in signals if signal in entry.files}
    for name, file in ({mark_name(entry.name): entry.index} | files).items():
        if name not in sizes:
            raise CorruptCacheError(f"{storage.where(name)}: the file is missing")
        if sizes[name] != file.bytes:
            raise CorruptCacheError(f"{storage.where(name)}: {sizes[name]} bytes, the manifest says {file.bytes}")


def read_table(storage: Storage, digest: str, vocab_size: int) -> np.ndarray:
    """Read the code table ``digest``, uint32 [V]. Raises CorruptCacheError."""
    name = table_path(digest)
    data = storage.read(name, max_bytes=8 * vocab_size + 1024)
    return decode_table(data, vocab_size, digest, storage.where(name))


def mark_names(storage: Storage) -> list[str]:
    """Names of all existing commit marks, planned or not."""
    return [name for name in storage.names() if re.fullmatch(r"shard-\d{6,9}\.json", name)]


def committed(storage: Storage, manifest: Manifest) -> list[str]:
    """Names of the planned shards that carry a commit mark, in plan order; over plain HTTP, of those listed already."""
    present = _mark_sizes(storage, manifest)
    return [unit.name for unit in manifest.units if mark_name(unit.name) in present]


def _mark_sizes(storage: Storage, manifest: Manifest) -> dict[str, int]:
    """Sizes of the files that are there, marks among them; over plain HTTP, of the marks that ``manifest`` lists."""
    if storage.can_list:
        return storage.sizes()
    return {mark_name(entry.name): entry.index.bytes for entry in manifest.shards}


class _Mark(NamedTuple):
    """What the manifest says of a commit mark."""

    entry: ShardEntry
    minor: int
    table: str


def assemble(storage: Storage, plan: Manifest) -> Manifest:
    """Assemble the manifest from ``plan`` and the commit marks, with all lists; entries of ``plan`` are kept.

    Its ``sha256`` is empty if it differs from the manifest file. The other marks are read a few at a time.
    """
    plan = with_lists(storage, plan)
    sizes = _mark_sizes(storage, plan)
    known = {entry.name: entry for entry in plan.shards}
    names = [unit.name for unit in plan.units if mark_name(unit.name) in sizes]

    def read(name: str) -> _Mark:
        data = storage.read(mark_name(name), size=sizes[mark_name(name)])
        index = _parse_mark(data, name, storage.where(mark_name(name)))
        minor = max(member.format_minor for member in index.signals.values())
        return _Mark(shard_entry(index, file_entry(data)), minor, index.table)

    shards: list[ShardEntry] = []
    tables: dict[str, FileEntry] = dict(plan.tables)
    minor = plan.format_minor
    with closing(map_ahead(read, (name for name in names if name not in known))) as marks:
        for name in names:
            if name in known:
                shards.append(known[name])
                continue
            mark = next(marks)
            shards.append(mark.entry)
            minor = max(minor, mark.minor)
            if mark.table not in tables:
                tables[mark.table] = file_entry(storage.read(table_path(mark.table)))
    complete = len(shards) == len(plan.units)
    return plan.model_copy(
        update={
            "format_minor": minor,
            "shards": shards,
            "shard_table": None,
            "tables": tables,
            "totals": totals_of(shards),
            "complete": complete,
            "sha256": plan.sha256 if shards == plan.shards and complete == plan.complete else "",
        }
    )


def totals_of(shards: Sequence[ShardEntry]) -> Totals:
    """Totals over these shards."""
    signals = sorted({signal for entry in shards for signal in entry.files})
    return Totals(
        samples=sum(entry.samples for entry in shards),
        tokens=sum(entry.tokens for entry in shards),
        bytes={signal: sum(entry.files[signal].bytes for entry in shards) for signal in signals},
        index_bytes=sum(entry.index.bytes for entry in shards),
    )


def shard_entry(index: ShardIndex, mark: FileEntry) -> ShardEntry:
    """The manifest entry of a shard with this index, stored in the file ``mark``."""
    return ShardEntry(
        name=index.name,
        samples=len(index.keys),
        tokens=sum(index.num_tokens),
        index=mark,
        files={signal: member.file for signal, member in index.signals.items()},
    )


def up_to_date_manifest(storage: Storage) -> Manifest:
    """The manifest with every shard committed so far, including by a running or killed run."""
    manifest = read_manifest(storage)
    return manifest if manifest.complete else assemble(storage, manifest)


def remove_garbage(storage: Storage, manifest: Manifest | None, unit: str = "") -> list[str]:
    """Delete the files that ``garbage`` finds; returns their names. No other process may be writing them."""
    removed = garbage(storage.names(), manifest, unit)
    for name in removed:
        storage.delete(name)
    return removed


def garbage(names: Iterable[str], manifest: Manifest | None, unit: str = "") -> list[str]:
    """Select the files that a killed run left behind: temporary ones, and those that the manifest does not list.

    ``manifest``: with its lists; None if there is none. In an incomplete cache, only temporary files of ``unit``, whose
    lease the caller holds. Files that do not belong to a cache are never selected.
    """
    own = [name for name in names if _OWN_NAME.fullmatch(name)]
    if manifest is None or manifest.complete:
        keep = set() if manifest is None else expected_names(manifest)
        return [name for name in own if name not in keep]
    return temporary_of(own, unit) if unit else []


def temporary_of(names: Iterable[str], unit: str) -> list[str]:
    """The temporary files that a killed worker on ``unit`` left behind."""
    of_unit = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}.*-{unit}\..*")
    return [name for name in names if of_unit.fullmatch(name)]


def own_names(names: Iterable[str]) -> list[str]:
    """Those names that are of a cache's files, except temporary ones."""
    return [name for name in names if _OWN_NAME.fullmatch(name) and not name.startswith(TEMPORARY_PREFIX)]


def check_committed(storage: Storage, manifest: Manifest) -> None:
    """Raise CorruptCacheError unless all shards of ``manifest``, which has its lists, exist with the right sizes."""
    sizes = storage.sizes()
    for entry in manifest.shards:
        try:
            check_sizes(storage, entry, entry.files, sizes)
        except CorruptCacheError as error:
            raise CorruptCacheError(
                f"{error}; restore it from a copy, or delete {storage.where(mark_name(entry.name))} to rewrite the "
                "shard"
            ) from None


def expected_names(manifest: Manifest) -> set[str]:
    """Names of all files that a manifest (with its lists) accounts for, except its own."""
    names = {tar_name(unit.name, "tokens") for unit in manifest.units}
    for entry in manifest.shards:
        names |= {mark_name(entry.name), *(tar_name(entry.name, signal) for signal in entry.files)}
    return names | {name for name, _ in files_beside_shards(manifest)}


def files_beside_shards(manifest: Manifest) -> list[tuple[str, FileEntry]]:
    """The files that a manifest lists besides those of its shards: code tables, shard table, head, vocabulary."""
    files = [(table_path(digest), entry) for digest, entry in sorted(manifest.tables.items())]
    files += [] if manifest.shard_table is None else [(table_file(manifest.shard_table), manifest.shard_table)]
    files += [] if manifest.head is None else [(HEAD, manifest.head.file)]
    files += [] if manifest.vocabulary is None else [(VOCABULARY, manifest.vocabulary)]
    return files
