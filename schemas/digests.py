"""The beginning of a payload's sha256, and how an index writes many of them."""

import base64
import binascii
import hashlib
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

DIGEST_BYTES = 16  # of a sha256: to put another payload in one's place takes 2¹²⁸ tries


def payload_digest(payload: bytes) -> bytes:
    """The first DIGEST_BYTES bytes of a payload's sha256."""
    return hashlib.sha256(payload).digest()[:DIGEST_BYTES]


def has_digest(payload: bytes, digests: bytes, row: int) -> bool:
    """Whether that is a payload's digest; ``digests`` is those of all rows, one after the other."""
    start = DIGEST_BYTES * row
    return hashlib.sha256(payload).digest()[:DIGEST_BYTES] == digests[start : start + DIGEST_BYTES]


def _decoded(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("wanted a string of base64")
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
