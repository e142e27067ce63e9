"""A cache's signatures, for display. Whether to trust a key is decided elsewhere."""

from pathlib import PurePosixPath
from typing import NamedTuple

from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.signature import SIGNATURES, Statement, signature_file
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.unlisted import file_names
from teacher_cache.trust.check_signatures import check_signature

MAX_SIGNATURES = 20  # checked and shown


class Signed(NamedTuple):
    """A signature of a cache."""

    public_key: str
    statement: Statement | None  # None if the signature is invalid
    problem: str  # why it is invalid, or ""


def signatures(storage: Storage, manifest: Manifest) -> list[Signed]:
    """The first signatures of a cache by key, valid or not; no other files are listed or read."""
    return [_signed(storage, manifest, PurePosixPath(name).stem) for name in signature_names(storage)[:MAX_SIGNATURES]]


def signature_names(storage: Storage) -> list[str]:
    """Names of a cache's signature files, sorted, listed without the rest of a large cache."""
    folder = PurePosixPath(signature_file("")).parent
    names = [f"{folder}/{name}" for name in file_names(Storage(f"{storage.url.rstrip('/')}/{folder}"))]
    return [name for name in names if SIGNATURES.fullmatch(name)]


def valid_signatures(storage: Storage, manifest: Manifest) -> list[tuple[str, Statement]]:
    """Public key and statement of the valid signatures."""
    return [(key, statement) for key, statement, _ in signatures(storage, manifest) if statement is not None]


def _signed(storage: Storage, manifest: Manifest, public_key: str) -> Signed:
    try:
        return Signed(public_key, check_signature(storage, manifest, public_key), "")
    except UserError as error:
        return Signed(public_key, None, str(error).removeprefix(f"{storage.where(signature_file(public_key))}: "))
