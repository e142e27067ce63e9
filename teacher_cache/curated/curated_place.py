"""The place of a curated corpus: file names, rows, manifest."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa

from schemas.arrow import CURATED_SCHEMA
from schemas.curated_manifest import CURATED_VERSION, CuratedManifest, CuratedShard, RemovedFile
from schemas.errors import UserError
from schemas.load import parse_cache_file
from teacher_cache.generated.reply_files import read_rows
from teacher_cache.shards.storage import Storage

CURATED = "curated.json"
MAX_BYTES = 1 << 26  # of the manifest: a shard takes 400, what left of it 250 for each pass
_RECORDS = re.compile(r"shard-[0-9]{6,9}\.records\.zst|removed-[0-9]{2}-[0-9]{6,9}\.zst")
NO_IDS = np.empty(0, np.uint32)


@dataclass(frozen=True)
class CuratedRow:
    """One record; ``schemas.arrow`` says what the fields are."""

    SCHEMA: ClassVar[pa.Schema] = CURATED_SCHEMA

    number: int
    source: int
    source_id: str
    layer: str
    n_tokens: int
    flags: bytes
    content: bytes
    prompt: str = ""
    prompt_ids: np.ndarray = field(default_factory=lambda: NO_IDS)  # uint32 [P]
    chat: bytes = b""
    reply: str = ""
    reply_ids: np.ndarray = field(default_factory=lambda: NO_IDS)  # uint32 [N]
    step: str = ""
    reason: str = ""


def shard_file(name: str) -> str:
    """File name of a shard's records."""
    return f"{name}.records.zst"


def is_record_file(name: str) -> bool:
    """Whether a file's name is that of records that stayed or left."""
    return _RECORDS.fullmatch(name) is not None


def read_curated(storage: Storage, key: str = "") -> CuratedManifest:
    """Read the manifest. Raises UserError, naming the setting ``key``, if there is none or it is newer.

    Raises CorruptCacheError if it is invalid.
    """
    where = storage.where(CURATED)
    if not storage.exists(CURATED):
        raise UserError(
            f"{key + ': ' if key else ''}{where}: not found; pass a folder or URL that teacher-cache curate has "
            "completed"
        )
    manifest = parse_cache_file(CuratedManifest, storage.read(CURATED, MAX_BYTES), where)
    if manifest.curated_version > CURATED_VERSION:
        raise UserError(f"{where}: version {manifest.curated_version} is newer than {CURATED_VERSION}; upgrade")
    manifest.check_seal(where)
    return manifest


def rows_of(storage: Storage, shards: list[CuratedShard]) -> Iterator[CuratedRow]:
    """Yield the records of the corpus in order. Raises CorruptCacheError."""
    for shard in shards:
        yield from read_rows(CuratedRow, storage, shard_file(shard.name), shard.file, shard.records)


def removed_rows(storage: Storage, files: list[RemovedFile]) -> Iterator[CuratedRow]:
    """Yield the records that left, with step and reason, pass by pass. Raises CorruptCacheError."""
    for file in files:
        yield from read_rows(CuratedRow, storage, file.name, file.file, file.records)
