"""Bundles: several short samples in one tar member, as an Arrow IPC stream of one batch with one row per sample.

A member of its own costs each sample about 1,200 bytes of tar header, Arrow schema and padding: negligible for
thousands of tokens, but more than the payload of fifteen. Each row of a bundle holds one sample's record: the frame of
a captured signal, or the output of ``token_records`` for ``tokens``. Every record has its own checksum in the index and
can be read alone; the cost is that records are compressed one by one.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa

from schemas.arrow import SIGNAL_SCHEMA
from teacher_cache.codec import token_records
from teacher_cache.codec.message import column_of, is_arrow, schema_of, write_batch
from teacher_cache.codec.sections import payload_frame

LEAST_SAMPLES, MOST_MEAN_TOKENS = 64, 128  # bounds for a shard to use bundles
MOST_SAMPLES, MOST_TOKENS = 256, 16_384  # limits of one bundle


class Bundle(NamedTuple):
    """Content of a member and the start offset of each record in it."""

    content: bytes
    starts: list[int]


def are_short(num_tokens: Sequence[int]) -> bool:
    """Whether a shard whose samples have these lengths should use bundles."""
    return len(num_tokens) >= LEAST_SAMPLES and sum(num_tokens) < MOST_MEAN_TOKENS * len(num_tokens)


def bundle_sizes(num_tokens: Iterable[int]) -> list[int]:
    """Number of samples in each bundle of a shard whose samples have these lengths."""
    sizes = [0]
    in_bundle = 0
    for n in num_tokens:
        if sizes[-1] and (sizes[-1] == MOST_SAMPLES or in_bundle + n > MOST_TOKENS):
            sizes.append(0)
            in_bundle = 0
        sizes[-1] += 1
        in_bundle += n
    return sizes


def write_bundle(records: Sequence[bytes]) -> Bundle:
    """Write records into a bundle."""
    content = write_batch(pa.record_batch([pa.array(records, pa.binary())], schema=SIGNAL_SCHEMA))
    column = column_of(SIGNAL_SCHEMA, content)
    return Bundle(content, [column.start + offset for offset in column.offsets[:-1]])


def bundle_places(content: bytes) -> list[tuple[int, int]]:
    """Offset and size in bytes of each record of an untrusted bundle. Raises CorruptCacheError."""
    column = column_of(SIGNAL_SCHEMA, content)
    return [(column.start + start, end - start) for start, end in itertools.pairwise(column.offsets)]


def is_bundle(content: bytes) -> bool:
    """Whether a member of a ``tokens`` tar is a bundle. Raises CorruptCacheError if it is not an Arrow stream."""
    return schema_of(content).names == SIGNAL_SCHEMA.names


def bundle_bytes(record_bytes: Iterable[int]) -> int:
    """Size in bytes of a bundle of records of these sizes."""
    sizes = list(record_bytes)
    return _EMPTY_BYTES + _padded(4 * (len(sizes) + 1)) + _padded(sum(sizes))


def _padded(size: int) -> int:
    return -(-size // 8) * 8


_EMPTY_BYTES = len(write_batch(pa.record_batch([pa.array([b""], pa.binary())], schema=SIGNAL_SCHEMA))) - _padded(8)


def as_record(signal: str, payload: bytes) -> bytes:
    """Convert a sample's payload to a record; records are returned as they are. Raises CorruptCacheError."""
    if not is_arrow(payload):
        return payload
    return token_records.to_record(payload) if signal == "tokens" else bytes(payload_frame(payload))
