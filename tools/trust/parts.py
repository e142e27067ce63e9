"""The signed manifest of a cache and its signatures, carried along with a part of it."""

import os

from schemas.errors import CorruptCacheError, UserError
from schemas.load import parse_json
from schemas.manifest import Manifest
from schemas.signature import SIGNATURES, Signature, signature_file
from teacher_cache.shards.marks import read_manifest, read_manifest_text
from teacher_cache.shards.storage import MANIFEST, MAX_JSON_BYTES, Storage
from teacher_cache.shards.table import table_file
from teacher_cache.trust.parts import signed_whole

MAX_SIGNATURES = 1000
MAX_FILE_BYTES = 1 << 16  # of a signature
OWNER = "signed-"  # of temporary files


def carry_signatures(source: Storage, manifest: Manifest, target: Storage) -> int:
    """Put a complete cache's manifest and signatures, if it is signed, beside a part of it; how many bytes these are.

    Of a source that is a part itself, and that nobody signed, what it came with is passed on. ``manifest``: its own.
    """
    if not _signatures(source):
        source = signed_whole(source)
        if not source.exists(MANIFEST):
            return 0
        manifest = read_manifest(source)
    files = {MANIFEST: read_manifest_text(source)}
    if manifest.shard_table is not None:
        name = table_file(manifest.shard_table)
        files[name] = source.read(name, min(manifest.shard_table.bytes, MAX_JSON_BYTES))
    for name in _signatures(source):
        files[name] = source.read(name, MAX_FILE_BYTES)
        parse_json(Signature, files[name], source.where(name))  # whatever else it is, a key say, is not for others
    whole = signed_whole(target)
    if whole.is_local and os.path.islink(whole.url):
        raise UserError(f"{whole.url}: a link, through which nothing is written; put a folder there, or nothing")
    for name, data in files.items():
        whole.put(name, data, OWNER)
    return sum(map(len, files.values()))


def _signatures(storage: Storage) -> list[str]:
    """Names of the signatures' files; nothing else of a large cache is listed."""
    folder, _, _ = signature_file("").partition("/")
    names = [f"{folder}/{name}" for name in Storage(f"{storage.url.rstrip('/')}/{folder}").names()]
    names = [name for name in names if SIGNATURES.fullmatch(name)]
    if len(names) > MAX_SIGNATURES:
        raise CorruptCacheError(f"{storage.url}: {len(names)} signatures, at most {MAX_SIGNATURES} are allowed")
    return names
