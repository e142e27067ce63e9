"""Who signed a cache, for the page."""

import re
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.signature import Signature
from teacher_cache.shards.storage import Storage

MOST_SIGNATURES = 20
MOST_BYTES = 1 << 16


class Signed(NamedTuple):
    """A signature that is there, and whether it holds."""

    public_key: str
    signer: str
    signed_at: str
    problem: str  # empty if the signature is this key's, and of this manifest


def signatures(url: str, manifest_sha256: str) -> list[Signed]:
    """The first signatures of a cache, by key. A key only says who signed to somebody who knows whose it is."""
    storage = Storage(url.rstrip("/") + "/signatures")
    names = [name for name in storage.names() if re.fullmatch(r"[0-9a-f]{64}\.json", name)]
    return [_check(storage, name, manifest_sha256) for name in names[:MOST_SIGNATURES]]


def _check(storage: Storage, name: str, manifest_sha256: str) -> Signed:
    key = name.removesuffix(".json")
    try:
        found = parse_json(Signature, storage.read(name, MOST_BYTES), storage.where(name))
    except UserError:
        return Signed(key, "", "", "not a signature")
    problem = ""
    if found.public_key != key:
        problem = "of another key than its file's name says"
    elif found.statement.manifest_sha256 != manifest_sha256:
        problem = "of another manifest"
    else:
        try:
            public_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
            public_key.verify(bytes.fromhex(found.signature), found.statement.message())
        except (InvalidSignature, ValueError):
            problem = "wrong"
    return Signed(key, found.statement.signer, found.statement.signed_at.isoformat(timespec="seconds"), problem)
