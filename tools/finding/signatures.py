"""Which signatures over a manifest are valid. Whose key to trust is not decided here."""

import re

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.manifest import Manifest
from schemas.signature import Signature, signature_file
from teacher_cache.shards.storage import Storage
from tools.finding.prefix import Prefix

MAX_FILES = 100  # of signatures that are looked at
MAX_BYTES = 4096


def valid_signatures(storage: Storage, manifest: Manifest) -> list[Signature]:
    """The signatures beside a cache that are valid and over this manifest, in order of their keys; others are not."""
    folder, _, pattern = signature_file(r"([0-9a-f]{64})").partition("/")
    names = [name for name in Prefix(storage.url).files(folder) if re.fullmatch(pattern, name)]
    found = []
    for name in names[:MAX_FILES]:
        try:
            signature = parse_json(Signature, storage.read(f"{folder}/{name}", MAX_BYTES), name)
        except UserError:
            continue
        if signature_file(signature.public_key) == f"{folder}/{name}" and _is_valid(signature, manifest):
            found.append(signature)
    return found


def _is_valid(signature: Signature, manifest: Manifest) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signature.statement.manifest_sha256 != manifest.sha256:
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.public_key))
        key.verify(bytes.fromhex(signature.signature), signature.statement.message())
    except (InvalidSignature, ValueError):
        return False
    return True
