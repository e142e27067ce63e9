"""The code table: token ids renamed so that their byte planes compress well.

Frequent ids get codes whose low *and* high byte are small: ids in order of falling frequency are laid on the
cells (high, low) in order of rising (high + 1) · (low + 1). For Zipf-like frequencies the two bytes are then nearly
independent, which is what compressing each plane on its own needs. Measured on rows of a 49,152-token
teacher: 94.2 bytes a row of 64 ids, against 96.6 for plain frequency ranks.

A table is a file of its own, ``tables/{sha256}.zst`` (zstd of little-endian u32 ids in code order). Shards name it by
digest, so shards of several caches can stand in one manifest without being rewritten.
"""

import functools
import hashlib

import numpy as np
import zstandard

from schemas.errors import CorruptCacheError
from teacher_cache.codec.planes import decompress

TWO_PLANES = 1 << 16


def build_code_table(counts: np.ndarray) -> np.ndarray:
    """The ids [V] uint32 in code order, from how often each id occurs (int [V]). Equal counts keep the order of ids."""
    vocab_size = len(counts)
    by_frequency = np.argsort(-counts.astype(np.int64), kind="stable")
    low_codes = min(vocab_size, TWO_PLANES)
    high, low = np.divmod(np.arange(low_codes), 256)
    cells = np.argsort((high + 1) * (low + 1), kind="stable")
    table = by_frequency.astype(np.uint32)
    table[cells] = by_frequency[:low_codes]
    return table


class CodeTable:
    """A code table both ways round."""

    def __init__(self, table: np.ndarray) -> None:
        """``table``: integer [V], ids in code order."""
        self.id_of_code = table.astype(np.int32)
        self.code_bytes = 2 if len(table) <= TWO_PLANES else 3

    @functools.cached_property
    def code_of_id(self) -> np.ndarray:
        """Codes int32 [V] by token id; only encoders need them."""
        codes = np.empty(len(self.id_of_code), np.int32)
        codes[self.id_of_code] = np.arange(len(codes), dtype=np.int32)
        return codes


def table_digest(table: np.ndarray) -> str:
    """sha256 (hex) of the table's little-endian u32 ids."""
    return hashlib.sha256(table.astype("<u4").tobytes()).hexdigest()


def encode_table(table: np.ndarray) -> bytes:
    """The content of a table's file."""
    return zstandard.ZstdCompressor(level=19).compress(table.astype("<u4").tobytes())


def decode_table(data: bytes, vocab_size: int, digest: str, where: str) -> np.ndarray:
    """The ids [V] uint32 of a table file. Raises CorruptCacheError if it is not the permutation named by ``digest``."""
    try:
        plain = decompress(data, 4 * vocab_size, least=4 * vocab_size)
    except CorruptCacheError as error:
        raise CorruptCacheError(f"{where}: {error}") from None
    table = plain.view("<u4").astype(np.uint32)
    if table_digest(table) != digest:
        raise CorruptCacheError(f"{where}: the code table's digest is {table_digest(table)}, wanted {digest}")
    if not np.array_equal(np.sort(table), np.arange(vocab_size)):
        raise CorruptCacheError(f"{where}: the code table is not a permutation of 0..{vocab_size - 1}")
    return table


def table_path(digest: str) -> str:
    """Name of a table's file below the cache."""
    return f"tables/{digest}.zst"
