"""Signatures of caches, right and wrong ones."""

import json
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.signature import Signature, Statement, signature_file
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage

SIGNED_AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def key_of(number: int) -> Ed25519PrivateKey:
    """One of a few keys that are always the same."""
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def public_key(number: int) -> str:
    return key_of(number).public_key().public_bytes_raw().hex()


def sign(url: str, number: int = 1, signer: str = "somebody", /, **changes: Any) -> str:
    """Sign the cache at ``url``; ``changes`` are made to the file's fields afterwards. Returns the public key."""
    storage = Storage(url)
    statement = Statement(manifest_sha256=read_manifest(storage).sha256, signer=signer, signed_at=SIGNED_AT)
    signature = Signature(
        statement=statement,
        public_key=public_key(number),
        signature=key_of(number).sign(statement.message()).hex(),
    )
    tree = json.loads(signature.model_dump_json())
    for name, value in changes.items():
        (tree["statement"] if name in tree["statement"] else tree)[name] = value
    storage.write(
        signature_file(public_key(number)),
        (json.dumps(tree, separators=(",", ":"), ensure_ascii=False) + "\n").encode(),
    )
    return public_key(number)
