"""Signatures of caches, checked: who vouches for a manifest, and through its checksums for every file of the cache.

Ed25519, one small file a signer: ``signatures/{public_key}.json``. Which file is read follows from the key that a user
asks for, never from what lies in the cache.
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
    """What the owner of ``public_key`` says about a cache; the signature is checked, not whether it is still true.

    Raises CorruptCacheError naming the file when it is missing, or anything in it is not as it was signed.
    """
    name = signature_file(public_key)
    where = storage.where(name)
    data = storage.read(name, MAX_SIGNATURE_BYTES)
    signature = parse_cache_file(Signature, data, where)
    if signature.public_key != public_key:
        raise CorruptCacheError(f"{where}: it is a signature by {signature.public_key}, wanted one by {public_key}")
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature.signature), signature.statement.message())
    except (InvalidSignature, ValueError):
        raise CorruptCacheError(
            f"{where}: the signature is not one of its statement by {public_key}: it was forged or changed"
        ) from None
    if data != signature.content():
        raise CorruptCacheError(f"{where}: not written as signatures are: one line of JSON without spaces")
    return signature.statement


def check_trust(
    storage: Storage, manifest: Manifest, required: Sequence[str], trusted_keys: Path | None = None
) -> list[Statement]:
    """Raise unless ``manifest``, as ``read_manifest`` gave it, is signed by each of ``required``; what they state.

    Args:
        storage: the cache.
        manifest: its manifest.
        required: keys as users give them, see ``load_public_key``.
        trusted_keys: the file with trusted keys; None: the default one.

    Raises:
        CorruptCacheError: a signature is missing, wrong, or of another manifest; names the file.
        UserError: a key of ``required`` is not known.
    """
    keys = [load_public_key(key, trusted_keys) for key in required]
    return [_vouched(storage, manifest, public) for public in keys]


def _vouched(storage: Storage, manifest: Manifest, public: str) -> Statement:
    """What the owner of a key says about this manifest, or about the whole that it is a part of."""
    whole_storage = signed_whole(storage)
    is_part = manifest.derived is not None and manifest.derived.action == "subset"
    if not is_part or storage.exists(signature_file(public)) or not whole_storage.exists(MANIFEST):
        return check_signature(storage, manifest, public)
    whole = read_manifest(whole_storage)
    statement = check_signature(whole_storage, whole, public)
    check_part(storage, manifest, whole)
    return statement


def check_signature(storage: Storage, manifest: Manifest, public: str) -> Statement:
    """What the owner of a key says about this manifest. Raises as ``check_trust``."""
    statement = read_statement(storage, public)
    if statement.manifest_sha256 != manifest.digest():
        raise CorruptCacheError(
            f"{storage.where(signature_file(public))}: {statement.signer} signed manifest "
            f"{statement.manifest_sha256}, this cache's is {manifest.digest()}: the cache was changed since, or the "
            "signature is another's"
        )
    return statement
