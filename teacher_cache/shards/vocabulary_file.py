"""The bytes of the teacher's tokens, ``vocabulary.arrow``: students with another tokenizer need nothing else of it.

An Arrow row with one zstd frame of sections (``codec.sections``), one entry for each id:

- ``lengths``: bytes of the token, u16.
- ``kinds``: 1 for special tokens, which stand for no text, 2 for those that end a text or a turn, 3 for both; u8.
- ``bytes``: of all tokens, one after the other.
"""

import numpy as np

from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry, Manifest
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.sections import Sections, payload_frame, write_payload
from teacher_cache.shards.storage import VOCABULARY, Storage, check_content, file_entry
from teacher_cache.token_table import TokenTable, Vocabulary

LENGTH_BYTES, N_SECTIONS, LEVEL = 2, 3, 9
MAX_TOKEN_BYTES = 256  # on average
SPECIAL, STOP = 1, 2


def write_vocabulary(vocabulary: Vocabulary, storage: Storage) -> FileEntry:
    """Write the file; returns its manifest entry. Tokens of more than 65,535 bytes are stored without any."""
    length_V = vocabulary.table.length_V
    tokens = [vocabulary.table.token(i) if length_V[i] < 1 << 16 else b"" for i in range(len(length_V))]
    table = TokenTable.of(tokens)
    kinds = SPECIAL * vocabulary.is_special_V.astype(np.uint8) + STOP * vocabulary.is_stop_V.astype(np.uint8)
    data = write_payload([split_planes(table.length_V, LENGTH_BYTES), kinds[None], table.bytes_B[None]], LEVEL)
    storage.write(VOCABULARY, data)
    return file_entry(data)


def read_vocabulary(storage: Storage, manifest: Manifest) -> Vocabulary:
    """Read a cache's vocabulary, with an entry for each id that the cache can hold: ids after the tokenizer's last one
    (the padding of an embedding) have no bytes.

    Raises CorruptCacheError, before allocating anything larger than is possible.
    """
    entry, where, size = manifest.vocabulary, storage.where(VOCABULARY), manifest.tokenizer.vocab_size
    if entry is None:
        raise CorruptCacheError(f"{where}: not listed in the manifest")
    limit = size * (LENGTH_BYTES + 1 + MAX_TOKEN_BYTES)
    data = storage.read(VOCABULARY, max_bytes=limit)
    check_content(data, entry, where)
    try:
        sections = Sections(payload_frame(data), N_SECTIONS, limit)
        length_V = sections.integers(0, (size,), LENGTH_BYTES).astype(np.int64)
        kind_V = sections.integers(1, (size,), 1)
    except CorruptCacheError as error:
        raise CorruptCacheError(f"{where}: {error}") from None
    bytes_B = sections[2]
    if length_V.sum() != len(bytes_B) or kind_V.max(initial=0) > SPECIAL | STOP:
        raise CorruptCacheError(
            f"{where}: tokens of {length_V.sum()} bytes in {len(bytes_B)}, kinds up to {kind_V.max(initial=0)}, "
            f"wanted at most {SPECIAL | STOP}"
        )
    padding = (0, max(0, manifest.teacher.vocab_size - size))
    length_V, kind_V = np.pad(length_V, padding), np.pad(kind_V, padding)
    table = TokenTable(bytes_B, np.cumsum(length_V) - length_V, length_V)
    return Vocabulary(table, kind_V & SPECIAL > 0, kind_V & STOP > 0)
