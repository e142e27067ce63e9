"""Signing keys, signing of caches, and the signature check of a transfer; ``teacher_cache.trust`` verifies."""

import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.errors import UserError
from schemas.failures import failure
from schemas.load import validate
from schemas.manifest import Manifest
from schemas.regular_files import read_file
from schemas.signature import Signature, Statement, signature_file
from teacher_cache.shards.lease import whole_place
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import Storage
from teacher_cache.trust.check_signatures import check_trust, read_statement
from teacher_cache.trust.keys import load_public_key
from teacher_cache.user_file import umask
from tools.trust.trusted_keys import public_file

MAX_KEY_BYTES = 1 << 16
PASSPHRASE = "CACHE_TOOLS_PASSPHRASE"  # environment variable

Check = Callable[[Storage, Manifest], None]


def generate_key(path: Path, name: str, passphrase: bytes | None = None) -> str:
    """Write a new private key to ``path`` (mode 0600) and the public key beside it; returns the latter, 64 hex digits.

    Raises UserError when one of the two files exists or cannot be written.
    """
    validate(Statement, {"manifest_sha256": "0" * 64, "signer": name, "signed_at": datetime.now(UTC)}, "the name")
    if path.is_file() and not os.path.lexists(public_file(path)):  # an earlier call was interrupted
        key = load_private_key(path, lambda: (passphrase or b"").decode())
    else:
        key = Ed25519PrivateKey.generate()
        _refuse_to_overwrite(path)
        _refuse_to_overwrite(public_file(path))
        encryption = (
            serialization.NoEncryption() if passphrase is None else serialization.BestAvailableEncryption(passphrase)
        )
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        _write_new(path, pem, 0o600)
    public = public_key_of(key)
    _write_new(public_file(path), f"{public} {name}\n".encode(), 0o666 & ~umask())
    return public


def _refuse_to_overwrite(file: Path) -> None:
    if os.path.lexists(file):
        raise UserError(f"{file}: exists already, and keys are never overwritten; choose another file")


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Create a file atomically; it must not exist."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()
    except OSError as error:
        if isinstance(error, FileExistsError):
            _refuse_to_overwrite(path)
        raise failure(error, f"{path}: cannot be written") from None


def load_private_key(path: Path, passphrase: Callable[[], str]) -> Ed25519PrivateKey:
    """Read the private key in a PEM file; ``passphrase`` is called if it is encrypted. Raises UserError."""
    pem = read_file(path, MAX_KEY_BYTES, "cannot read the key")
    password = passphrase().encode() if b"ENCRYPTED" in pem else None
    try:
        key = serialization.load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        hint = "wrong passphrase?" if password is not None else "give a file written by `cache-tools keygen`"
        raise UserError(f"{path}: not a readable private key: {error}; {hint}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: {type(key).__name__}, wanted an Ed25519 key; make one with `cache-tools keygen`")
    return key


def public_key_of(key: Ed25519PrivateKey) -> str:
    """The public key, 64 hex digits."""
    return key.public_key().public_bytes_raw().hex()


def sign(storage: Storage, key: Ed25519PrivateKey, signer: str) -> Signature:
    """Sign the manifest of a complete cache and write the signature into the cache. Raises UserError."""
    read_manifest(storage)  # raises before anything is written, even a lease
    with whole_place(storage, "cache-tools sign") as lease:
        return _sign(lease.storage, key, signer)


def _sign(storage: Storage, key: Ed25519PrivateKey, signer: str) -> Signature:
    manifest = read_manifest(storage)
    with_lists(storage, manifest)  # checks the shard table against the manifest
    if not manifest.complete:
        raise UserError(
            f"{storage.url}: {len(manifest.shards)} of {len(manifest.units) or 'its'} shards are committed, and the "
            "manifest will change; sign the cache when it is complete"
        )
    claim = {"manifest_sha256": manifest.digest(), "signer": signer, "signed_at": datetime.now(UTC)}
    statement = validate(Statement, claim, "the statement to be signed")
    public = public_key_of(key)
    signature = Signature(statement=statement, public_key=public, signature=key.sign(statement.message()).hex())
    storage.write(signature_file(public), signature.content())
    return signature


def check_not_older(found: Statement, known: Statement) -> None:
    """Raise UserError on a rollback: when ``found`` is an older statement, about another manifest, than ``known``."""
    if found.manifest_sha256 != known.manifest_sha256 and found.signed_at <= known.signed_at:
        raise UserError(
            f"the manifest {found.manifest_sha256} was signed by {found.signer} at {found.signed_at.isoformat()}, "
            f"before {known.manifest_sha256}, signed at {known.signed_at.isoformat()}, which is here already: an older "
            "state of the cache was put back; ask its owner, or fetch it to another folder"
        )


def trust_check(required: Sequence[str], trusted_keys: Path | None = None, target: Storage | None = None) -> Check:
    """A check to call with a source and its manifest before anything is fetched; raises as ``check_trust``.

    ``target``: where the cache is fetched to; a source with an older signature than the target's is refused.
    """

    def check(source: Storage, manifest: Manifest) -> None:
        keys = [load_public_key(key, trusted_keys) for key in required]
        for public, statement in zip(keys, check_trust(source, manifest, keys), strict=True):
            if target is not None and target.exists(signature_file(public)):
                check_not_older(statement, read_statement(target, public))

    return check
