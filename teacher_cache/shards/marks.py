"""Commit marks: which shards are whole, and the manifest that follows from them."""

import hashlib
import re

import numpy as np

from schemas.base import FORMAT_VERSION
from schemas.errors import CorruptCacheError, UserError
from schemas.load import parse_json
from schemas.manifest import FileEntry, Manifest, ShardEntry, ShardIndex, Signal, Totals
from teacher_cache.codec.permutation import decode_table, table_path
from teacher_cache.shards.storage import HEAD, MANIFEST, TEMPORARY_PREFIX, Storage, file_entry

_OWN_NAME = re.compile(r"head\.safetensors|shard-\d{6,9}(\.[a-z]+\.tar|\.json)|tables/[0-9a-f]{64}\.zst|\.tmp-.*")


def tar_name(shard: str, signal: str) -> str:
    """Name of the tar that holds one signal of a shard."""
    return f"{shard}.{signal}.tar"


def mark_name(shard: str) -> str:
    """Name of a shard's index, which is its commit mark."""
    return f"{shard}.json"


def read_manifest(storage: Storage) -> Manifest:
    """The cache's manifest; raises UserError when there is none, CorruptCacheError when it is not valid."""
    where = storage.where(MANIFEST)
    if not storage.exists(MANIFEST):
        raise UserError(f"{where}: not found, so this is not a cache; give the folder or URL that holds manifest.json")
    data = storage.read(MANIFEST)
    manifest = parse_json(Manifest, data, where)
    if manifest.format_version > FORMAT_VERSION:
        raise UserError(
            f"{where}: format_version {manifest.format_version} is newer than {FORMAT_VERSION}, the newest that this "
            "version reads; update this package"
        )
    before, _, after = data.rpartition(manifest.sha256.encode() or b"no sha256")
    found = hashlib.sha256(before + after).hexdigest()
    if manifest.sha256 != found:
        raise CorruptCacheError(
            f"{where}: its sha256 is {found}, the file says {manifest.sha256 or 'nothing'}: it was changed after it "
            "was written; fetch it again from where it came"
        )
    return manifest


def write_mark(storage: Storage, index: ShardIndex, owner: str = "") -> None:
    """Commit a shard. Its tars must be in place."""
    storage.write(mark_name(index.name), (index.model_dump_json() + "\n").encode(), owner)


def read_mark(storage: Storage, shard: str, expected: FileEntry | None = None) -> ShardIndex:
    """A shard's index, checked against the manifest's entry if given. Raises CorruptCacheError."""
    return _read_mark(storage, shard, expected)[0]


def _read_mark(storage: Storage, shard: str, expected: FileEntry | None) -> tuple[ShardIndex, FileEntry]:
    where = storage.where(mark_name(shard))
    data = storage.read(mark_name(shard))
    found = file_entry(data)
    if expected is not None and found != expected:
        raise CorruptCacheError(f"{where}: sha256 is {found.sha256}, the manifest says {expected.sha256}")
    try:
        index = parse_json(ShardIndex, data, where)
    except UserError as error:
        raise CorruptCacheError(str(error)) from None
    if index.format_version > FORMAT_VERSION:
        raise CorruptCacheError(
            f"{where}: format_version {index.format_version} is newer than {FORMAT_VERSION}; update this package"
        )
    if index.name != shard:
        raise CorruptCacheError(f"{where}: it is the index of {index.name}, wanted {shard}")
    return index, found


def read_index(
    storage: Storage, manifest: Manifest, entry: ShardEntry, signals: tuple[Signal, ...], sizes: dict[str, int]
) -> ShardIndex:
    """The index of a shard that ``manifest`` lists, for reading ``signals``.

    Args:
        sizes: bytes of the cache's files, ``storage.sizes()``.

    Raises CorruptCacheError when index, manifest and the sizes of the signals' files contradict each other, so that
    what a reader allocates and where it reads is bounded by what the manifest declares.
    """
    index = read_mark(storage, entry.name, entry.index)
    where = storage.where(mark_name(entry.name))
    if len(index.keys) != entry.samples or sum(index.num_tokens) != entry.tokens:
        raise CorruptCacheError(
            f"{where}: {len(index.keys)} samples of {sum(index.num_tokens)} tokens, the manifest says {entry.samples} "
            f"of {entry.tokens}"
        )
    longest, limit = max(index.num_tokens), manifest.corpus.settings.max_tokens
    if longest > limit:
        raise CorruptCacheError(f"{where}: a sample of {longest} tokens, the manifest says at most {limit}")
    if index.table not in manifest.tables:
        raise CorruptCacheError(f"{where}: code table {index.table} is not in the manifest")
    for signal in signals:
        _check_member(storage, index, signal, entry, sizes)
    return index


def _check_member(
    storage: Storage, index: ShardIndex, signal: Signal, entry: ShardEntry, sizes: dict[str, int]
) -> None:
    name = tar_name(index.name, signal)
    where = storage.where(name)
    if signal not in index.signals or signal not in entry.files:
        raise CorruptCacheError(f"{where}: the shard has no {signal} signal")
    member = index.signals[signal]
    if member.file != entry.files[signal]:
        raise CorruptCacheError(f"{where}: the index and the manifest name different sizes or checksums for it")
    if name not in sizes:
        raise CorruptCacheError(f"{where}: the file is missing")
    if sizes[name] != member.file.bytes:
        raise CorruptCacheError(f"{where}: {sizes[name]} bytes, the index says {member.file.bytes}")
    ends = np.array(member.offsets) + np.array(member.sizes)
    if ends.max() > member.file.bytes:
        raise CorruptCacheError(f"{where}: sample {index.keys[int(ends.argmax())]} ends beyond the file")


def read_table(storage: Storage, digest: str, vocab_size: int) -> np.ndarray:
    """The code table ``digest``, uint32 [V]. Raises CorruptCacheError."""
    name = table_path(digest)
    data = storage.read(name, max_bytes=8 * vocab_size + 1024)
    return decode_table(data, vocab_size, digest, storage.where(name))


def mark_names(storage: Storage) -> list[str]:
    """Names of all commit marks that are there, planned or not."""
    return [name for name in storage.names() if re.fullmatch(r"shard-\d{6,9}\.json", name)]


def committed(storage: Storage, manifest: Manifest) -> list[str]:
    """Names of the planned shards that carry a commit mark, in plan order."""
    present = set(storage.names())
    return [unit.name for unit in manifest.units if mark_name(unit.name) in present]


def assemble(storage: Storage, plan: Manifest) -> Manifest:
    """The manifest that follows from ``plan`` and the commit marks. Entries that ``plan`` has already are kept."""
    known = {entry.name: entry for entry in plan.shards}
    shards: list[ShardEntry] = []
    tables: dict[str, FileEntry] = dict(plan.tables)
    for name in committed(storage, plan):
        if name in known:
            shards.append(known[name])
            continue
        index, mark = _read_mark(storage, name, None)
        shards.append(_entry(index, mark))
        if index.table not in tables:
            tables[index.table] = file_entry(storage.read(table_path(index.table)))
    signals = sorted({signal for entry in shards for signal in entry.files})
    totals = Totals(
        samples=sum(entry.samples for entry in shards),
        tokens=sum(entry.tokens for entry in shards),
        bytes={signal: sum(entry.files[signal].bytes for entry in shards) for signal in signals},
        index_bytes=sum(entry.index.bytes for entry in shards),
    )
    return plan.model_copy(
        update={"shards": shards, "tables": tables, "totals": totals, "complete": len(shards) == len(plan.units)}
    )


def _entry(index: ShardIndex, mark: FileEntry) -> ShardEntry:
    return ShardEntry(
        name=index.name,
        samples=len(index.keys),
        tokens=sum(index.num_tokens),
        index=mark,
        files={signal: member.file for signal, member in index.signals.items()},
    )


def up_to_date_manifest(storage: Storage) -> Manifest:
    """The manifest with every shard committed by now, also by a run that is under way or was killed."""
    manifest = read_manifest(storage)
    return manifest if manifest.complete else assemble(storage, manifest)


def remove_garbage(storage: Storage, manifest: Manifest | None, owner: str = "") -> list[str]:
    """Delete what a killed run left: temporary files, and shard files or tables that the manifest does not account for.

    While the cache is incomplete only this ``owner``'s temporary files are removed, so that other workers are not
    disturbed. Files that are not a cache's are never touched. Returns the names removed.
    """
    complete = manifest is None or manifest.complete
    keep = _expected_names(manifest) if manifest is not None else set()
    removed = []
    for name in storage.names():
        if not _OWN_NAME.fullmatch(name) or name in keep:
            continue
        if complete or name.startswith(TEMPORARY_PREFIX + owner):
            storage.delete(name)
            removed.append(name)
    return removed


def _expected_names(manifest: Manifest) -> set[str]:
    names = {tar_name(unit.name, "tokens") for unit in manifest.units}
    names |= {HEAD} if manifest.head is not None else set()
    for entry in manifest.shards:
        names |= {mark_name(entry.name), *(tar_name(entry.name, signal) for signal in entry.files)}
    return names | {table_path(digest) for digest in manifest.tables}
