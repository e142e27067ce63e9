"""Copying of a cache's signed manifest and signatures along with a part of it."""

import os
from collections.abc import Iterable

from schemas.errors import CorruptCacheError, UserError
from schemas.load import parse_json
from schemas.manifest import Manifest
from schemas.signature import SIGNATURES, Signature
from teacher_cache.shards.marks import read_manifest, read_manifest_text
from teacher_cache.shards.shard_table import table_file
from teacher_cache.shards.storage import MANIFEST, MAX_JSON_BYTES, Storage
from teacher_cache.trust.check_signatures import MAX_SIGNATURE_BYTES
from teacher_cache.trust.signed_parts import signed_whole
from tools.trust.signatures import signature_names

MAX_SIGNATURES = 1000
OWNER = "signed-"  # of temporary files


def carry_signatures(source: Storage, manifest: Manifest, target: Storage) -> int:
    """Copy a signed cache's manifest and signatures beside a part of it; returns the bytes written.

    If ``source`` is itself an unsigned part, the signed manifest it carries is passed on. ``manifest``: the source's.
    """
    names = signature_names(source)
    if not names:
        source = signed_whole(source)
        if not source.exists(MANIFEST):
            return 0
        manifest, names = read_manifest(source), signature_names(source)
    files = {MANIFEST: read_manifest_text(source)}
    if manifest.shard_table is not None:
        name = table_file(manifest.shard_table)
        files[name] = source.read(name, min(manifest.shard_table.bytes, MAX_JSON_BYTES))
    files |= read_signatures(source, names)
    whole = signed_whole(target)
    if whole.is_local and os.path.islink(whole.url):
        raise UserError(f"{whole.url}: a symlink, wanted a folder or nothing; remove the link")
    for name, data in files.items():
        whole.put(name, data, OWNER)
    return sum(map(len, files.values()))


def read_signatures(storage: Storage, names: Iterable[str]) -> dict[str, bytes]:
    """Read the signature files among ``names``: name → bytes. Other files are not read.

    Raises CorruptCacheError when there are too many or one is too large, UserError when one is not a signature.
    """
    names = [name for name in names if SIGNATURES.fullmatch(name)]
    if len(names) > MAX_SIGNATURES:
        raise CorruptCacheError(
            f"{storage.where('signatures')}: {len(names)} signatures, wanted at most {MAX_SIGNATURES}"
        )
    found = {name: storage.read(name, MAX_SIGNATURE_BYTES) for name in names}
    for name, data in found.items():
        parse_json(Signature, data, storage.where(name))  # anything else, such as a private key, must not be shared
    return found
