"""Several short samples in one tar member: a bundle is an Arrow IPC stream of one batch, a row for each sample.

A member of its own costs a sample some 1,200 bytes of tar header, Arrow schema and padding: nothing beside thousands
of tokens, and more than all that is stored of fifteen. What a row of a bundle holds is the sample's record: of a
captured signal the frame, of ``tokens`` what ``token_records`` writes. Records stay apart, each with its own
checksum in the index, so that one is read without the others; the price is that they are compressed one by one.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa

from schemas.arrow import SIGNAL_SCHEMA
from teacher_cache.codec import token_records
from teacher_cache.codec.message import column_of, is_arrow, schema_of, write_batch
from teacher_cache.codec.sections import payload_frame

LEAST_SAMPLES, MOST_MEAN_TOKENS = 64, 128  # of a shard whose samples are bundled
MOST_SAMPLES, MOST_TOKENS = 256, 16_384  # of a bundle


class Bundle(NamedTuple):
    """A member's content, and where in it each record begins."""

    content: bytes
    starts: list[int]


def are_short(num_tokens: Sequence[int]) -> bool:
    """Whether a shard of samples of so many tokens is better off with bundles."""
    return len(num_tokens) >= LEAST_SAMPLES and sum(num_tokens) < MOST_MEAN_TOKENS * len(num_tokens)


def bundle_sizes(num_tokens: Iterable[int]) -> list[int]:
    """Samples of each bundle of a shard with samples of so many tokens."""
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
    """The bundle of these records."""
    content = write_batch(pa.record_batch([pa.array(records, pa.binary())], schema=SIGNAL_SCHEMA))
    column = column_of(SIGNAL_SCHEMA, content)
    return Bundle(content, [column.start + offset for offset in column.offsets[:-1]])


def bundle_places(content: bytes) -> list[tuple[int, int]]:
    """Where each record of an untrusted bundle begins, and its size in bytes. Raises CorruptCacheError."""
    column = column_of(SIGNAL_SCHEMA, content)
    return [(column.start + start, end - start) for start, end in itertools.pairwise(column.offsets)]


def is_bundle(content: bytes) -> bool:
    """Whether a member of a ``tokens`` tar holds records. Raises CorruptCacheError when it is no Arrow stream."""
    return schema_of(content).names == SIGNAL_SCHEMA.names


def bundle_bytes(record_bytes: Iterable[int]) -> int:
    """What the bundle of records of these sizes takes."""
    sizes = list(record_bytes)
    return _EMPTY_BYTES + _padded(4 * (len(sizes) + 1)) + _padded(sum(sizes))


def _padded(size: int) -> int:
    return -(-size // 8) * 8


_EMPTY_BYTES = len(write_batch(pa.record_batch([pa.array([b""], pa.binary())], schema=SIGNAL_SCHEMA))) - _padded(8)


def as_record(signal: str, payload: bytes) -> bytes:
    """A sample's payload, whatever its form, as a record. Raises CorruptCacheError."""
    if not is_arrow(payload):
        return payload
    return token_records.to_record(payload) if signal == "tokens" else bytes(payload_frame(payload))
