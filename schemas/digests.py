"""Truncated sha256 digests of payloads, and their encoding in an index."""

import base64
import binascii
import hashlib
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

DIGEST_BYTES = 16  # of a sha256: a second preimage takes 2¹²⁸ attempts


def payload_digest(payload: bytes) -> bytes:
    """The first DIGEST_BYTES bytes of a payload's sha256."""
    return hashlib.sha256(payload).digest()[:DIGEST_BYTES]


def has_digest(payload: bytes, digests: bytes, row: int) -> bool:
    """Whether a payload's digest is that of ``row``; ``digests`` is the concatenation of all rows'."""
    start = DIGEST_BYTES * row
    return hashlib.sha256(payload).digest()[:DIGEST_BYTES] == digests[start : start + DIGEST_BYTES]


def _decoded(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("expected a base64 string")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not valid base64") from None


Base64 = Annotated[
    bytes,
    PlainValidator(_decoded),
    PlainSerializer(lambda value: base64.b64encode(value).decode(), return_type=str),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
