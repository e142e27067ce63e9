"""A cache's signatures, for display. Whether to trust a key is decided elsewhere."""

import re
from typing import NamedTuple

from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.signature import Statement, signature_file
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
    folder, _, _ = signature_file("").partition("/")
    names = file_names(Storage(f"{storage.url.rstrip('/')}/{folder}"))
    keys = [name.removesuffix(".json") for name in names if re.fullmatch(r"[0-9a-f]{64}\.json", name)]
    return [_signed(storage, manifest, key) for key in keys[:MAX_SIGNATURES]]


def valid_signatures(storage: Storage, manifest: Manifest) -> list[tuple[str, Statement]]:
    """Public key and statement of the valid signatures."""
    return [(key, statement) for key, statement, _ in signatures(storage, manifest) if statement is not None]


def _signed(storage: Storage, manifest: Manifest, public_key: str) -> Signed:
    try:
        return Signed(public_key, check_signature(storage, manifest, public_key), "")
    except UserError as error:
        return Signed(public_key, None, str(error).removeprefix(f"{storage.where(signature_file(public_key))}: "))
