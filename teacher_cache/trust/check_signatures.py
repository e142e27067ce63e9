"""Check signatures of caches: who vouches for a manifest and, through its checksums, for every file of the cache.

Ed25519, one small file per signer: ``signatures/{public_key}.json``. The file to read follows from the key that the
user requires, never from what the cache contains.
"""

from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from schemas.errors import CorruptCacheError
from schemas.load import parse_cache_file
from schemas.manifest import Manifest
from schemas.signature import Signature, Statement, signature_file
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.trust.keys import load_public_key
from teacher_cache.trust.signed_parts import check_part, signed_whole

MAX_SIGNATURE_BYTES = 1 << 16


def read_statement(storage: Storage, public_key: str) -> Statement:
    """Read the statement of the owner of ``public_key`` about a cache, and verify its signature.

    Does not check that the statement fits the cache. Raises CorruptCacheError, naming the file, if it is missing or
    invalid.
    """
    name = signature_file(public_key)
    where = storage.where(name)
    data = storage.read(name, MAX_SIGNATURE_BYTES)
    signature = parse_cache_file(Signature, data, where)
    if signature.public_key != public_key:
        raise CorruptCacheError(f"{where}: signature by {signature.public_key}, expected one by {public_key}")
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature.signature), signature.statement.message())
    except (InvalidSignature, ValueError):
        raise CorruptCacheError(
            f"{where}: the signature does not match its statement: one of them was forged or modified"
        ) from None
    if data != signature.content():
        raise CorruptCacheError(f"{where}: not in canonical form: expected one line of JSON without spaces")
    return signature.statement


def check_trust(
    storage: Storage, manifest: Manifest, required: Sequence[str], trusted_keys: Path | None = None
) -> list[Statement]:
    """Check that ``manifest``, as read by ``read_manifest``, is signed by each of ``required``.

    Args:
        storage: the cache.
        manifest: its manifest.
        required: keys in any form that ``load_public_key`` accepts.
        trusted_keys: the file with trusted keys; None: the default one.

    Returns:
        The signers' statements, in the order of ``required``.

    Raises:
        CorruptCacheError: a signature is missing, invalid, or of another manifest; names the file.
        UserError: a key of ``required`` is unknown.
    """
    keys = [load_public_key(key, trusted_keys) for key in required]
    return [_vouched(storage, manifest, public) for public in keys]


def _vouched(storage: Storage, manifest: Manifest, public: str) -> Statement:
    """The statement of a key's owner about this manifest, or about the whole cache that it is a part of."""
    whole_storage = signed_whole(storage)
    is_part = manifest.derived is not None and manifest.derived.action == "subset"
    if not is_part or storage.exists(signature_file(public)) or not whole_storage.exists(MANIFEST):
        return check_signature(storage, manifest, public)
    whole = read_manifest(whole_storage)
    statement = check_signature(whole_storage, whole, public)
    check_part(storage, manifest, whole)
    return statement


def check_signature(storage: Storage, manifest: Manifest, public: str) -> Statement:
    """The statement of a key's owner about this manifest. Raises the same as ``check_trust``."""
    statement = read_statement(storage, public)
    if statement.manifest_sha256 != manifest.digest():
        raise CorruptCacheError(
            f"{storage.where(signature_file(public))}: {statement.signer} signed manifest "
            f"{statement.manifest_sha256}, this cache's is {manifest.digest()}: the cache was modified since, or the "
            "signature belongs to another cache"
        )
    return statement
