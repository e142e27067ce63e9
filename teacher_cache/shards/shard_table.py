"""The shard table: what is known about each shard before any of its files is read.

Small caches list their shards in the manifest. Large ones list them in a columnar file next to it, which loads in a
fraction of a second, where a hundred thousand JSON entries take many, and is used in memory as is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.arrow import shard_table_schema
from schemas.errors import CorruptCacheError
from schemas.manifest import MAX_LISTED_UNITS, MAX_SHARD_SAMPLES, FileEntry, Manifest, ShardEntry, Signal, Unit
from teacher_cache.codec.message import read_columns, write_batch
from teacher_cache.shards.storage import MAX_JSON_BYTES, Storage, check_content, file_entry

NO_SHA256 = "0" * 64
MAX_NUMBER = 10**9


def table_file(entry: FileEntry) -> str:
    """File name of a shard table."""
    return f"tables/{entry.sha256}.arrow"


class ShardTable:
    """The committed shards of a cache, in order: ``samples`` is int64 [shards], ``entry`` returns the rest."""

    def __init__(self, manifest: Manifest, storage: Storage) -> None:
        """The shards that ``manifest`` lists, inline or in a file at ``storage``. Raises CorruptCacheError."""
        self._listed = manifest.shards
        self._signals = signals_of(manifest)
        if manifest.shards or manifest.shard_table is None:
            self.samples = np.array([entry.samples for entry in manifest.shards], np.int64)
        else:
            table = read_shard_table(storage, manifest)
            committed = column(table, "index_bytes") > 0
            self._table = table if committed.all() else table.filter(pa.array(committed))
            self.samples = column(self._table, "samples")

    def __len__(self) -> int:
        return len(self.samples)

    def entry(self, shard: int) -> ShardEntry:
        """The manifest entry of a shard."""
        if self._listed:
            return self._listed[shard]
        return _shard_entry(self._table.slice(shard, 1).to_pylist()[0], self._signals)


def signals_of(manifest: Manifest) -> tuple[Signal, ...]:
    """The signals of every shard of a cache."""
    return ("tokens", *manifest.capture.signals)


def _shard_entry(row: dict[str, Any], signals: Sequence[Signal]) -> ShardEntry:
    return ShardEntry(
        name=shard_name(row["number"]),
        samples=row["samples"],
        tokens=row["tokens"],
        index=_file(row, "index"),
        files={signal: _file(row, signal) for signal in signals},
    )


def _file(row: dict[str, Any], file: str) -> FileEntry:
    return FileEntry(bytes=row[f"{file}_bytes"], sha256=row[f"{file}_sha256"].hex())


def shard_name(number: int) -> str:
    """Name of a shard, from its number."""
    return f"shard-{number:06d}"


def column(table: pa.Table, name: str) -> np.ndarray:
    """An integer column as an array."""
    return table.column(name).to_numpy()


def read_shard_table(storage: Storage, manifest: Manifest) -> pa.Table:
    """Read the shard table of ``manifest``, with columns as in ``shard_table_schema``. Raises CorruptCacheError."""
    entry = manifest.shard_table
    assert entry is not None
    where = storage.where(table_file(entry))
    data = storage.read(table_file(entry), max_bytes=min(entry.bytes, MAX_JSON_BYTES))
    check_content(data, entry, where)
    try:
        table = read_columns(shard_table_schema(signals_of(manifest)), data)
    except CorruptCacheError as error:
        raise CorruptCacheError(f"{where}: {error}") from None
    samples, tokens, number = (column(table, name) for name in ("samples", "tokens", "number"))
    committed = column(table, "index_bytes") > 0
    sound = {
        "numbers are not ascending": (np.diff(number, prepend=-1) > 0).all() and number.max(initial=0) < MAX_NUMBER,
        f"a shard has no sample or more than {MAX_SHARD_SAMPLES}": (
            (samples >= 1).all() and (samples <= MAX_SHARD_SAMPLES).all()
        ),
        "samples do not add up to the manifest's totals": samples[committed].sum() == manifest.totals.samples,
        "tokens do not add up to the manifest's totals": tokens[committed].sum() == manifest.totals.tokens,
        "shards are missing, although the cache is complete": committed.all() or not manifest.complete,
    }
    for problem, holds in sound.items():
        if not holds:
            raise CorruptCacheError(f"{where}: {problem}")
    return table


def with_lists(storage: Storage, manifest: Manifest) -> Manifest:
    """``manifest`` with ``units`` and ``shards`` filled in from its shard table, if it has one. Keeps its digest."""
    if manifest.shard_table is None or manifest.units:
        return manifest
    rows = read_shard_table(storage, manifest).to_pylist()
    units = [
        Unit(
            name=shard_name(row["number"]),
            samples=row["samples"],
            tokens=row["tokens"],
            tokens_file=_file(row, "tokens"),
        )
        for row in rows
    ]
    shards = [_shard_entry(row, signals_of(manifest)) for row in rows if row["index_bytes"]]
    return manifest.model_copy(update={"units": units, "shards": shards})


def store_lists(storage: Storage, manifest: Manifest, owner: str = "") -> Manifest:
    """``manifest`` ready to be written; for a large cache this writes the shard table to a file first."""
    if len(manifest.units) <= MAX_LISTED_UNITS:
        return manifest.model_copy(update={"shard_table": None})
    data = write_batch(_to_batch(manifest))
    entry = file_entry(data)
    storage.write(table_file(entry), data, owner)
    return manifest.model_copy(update={"shard_table": entry})


def _to_batch(manifest: Manifest) -> pa.RecordBatch:
    schema = shard_table_schema(signals_of(manifest))
    shards = {entry.name: entry for entry in manifest.shards}
    nothing = FileEntry(bytes=0, sha256=NO_SHA256)
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for unit in manifest.units:
        shard = shards.get(unit.name)
        files: dict[str, FileEntry] = {"tokens": unit.tokens_file}
        if shard is not None:
            files |= {"index": shard.index} | {str(signal): file for signal, file in shard.files.items()}
        columns["number"].append(int(unit.name.removeprefix("shard-")))
        columns["samples"].append(unit.samples)
        columns["tokens"].append(unit.tokens)
        for file in ("index", *signals_of(manifest)):
            entry = files.get(file, nothing)
            columns[f"{file}_bytes"].append(entry.bytes)
            columns[f"{file}_sha256"].append(bytes.fromhex(entry.sha256))
    return pa.RecordBatch.from_pydict(columns, schema=schema)
