"""Encode rows of distinct token ids, likeliest first, as small symbols: most ids occur in an earlier row already.

A row may refer to an earlier row as its reference. Each of its ids is one symbol, u8:

- 0 … 127: the id at rank k + symbol - 64 of the reference row, where k is its own rank,
- 128 … 254: entry 256 · (symbol - 128) + b of the sequence's list of new ids, where b is the next byte of ``lows``,
- 255: a new id: the next entry of that list.

Six sections hold P rows:

- ``distances``: number of rows back to the reference row, u16; 0 for none.
- ``symbols``, three sections: see ``groups``.
- ``lows``: u8.
- ``new``: the list of new ids as codes (see ``permutation``), u16, or u24 for vocabularies above 65,536.

The encoder chooses the reference row: the one with most ids in common among the last few rows that contain each id.
Measured for 64 ids per row of a 49,152-token teacher and 512 rows per sequence: 81 bytes per row, against 94 for the
codes alone.
"""

import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros

from teacher_cache.codec.compiled import compiled, load_word, refused_as_corrupt
from teacher_cache.codec.groups import PLACES, index, split_groups
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.codec.planes import split_planes
from teacher_cache.codec.sections import Sections

FROM_REFERENCE, NEW = 128, 255  # symbols below 128 refer to the reference row; 255 is a new id
CENTRE = 64  # symbol of the same rank in the reference row
DISTANCE_BYTES = 2
N_SECTIONS = 6
LISTED = (NEW - FROM_REFERENCE) * 256  # new ids that a symbol can refer to
FARTHEST = (1 << 8 * DISTANCE_BYTES) - 1  # largest distance of a reference row
BYTE_BITS = index(0x0101010101010101)  # the lowest bit of each byte
TO_TOP = index(0x0102040810204080)  # multiplier that gathers them in the highest byte
RECENT = 16  # latest rows of each id that the encoder considers


def encode_ids(ids_E: np.ndarray, counts_P: np.ndarray, table: CodeTable) -> list[np.ndarray]:
    """Encode E ids of P concatenated rows into the six sections, uint8 [planes, N] each.

    Args:
        ids_E: int32, distinct within a row.
        counts_P: int32, number of ids in each row.

    Raises ValueError if an id is outside the table or occurs more than once in one row.
    """
    if len(ids_E) and not 0 <= ids_E.min() <= ids_E.max() < len(table.code_of_id):
        raise ValueError(f"ids from {ids_E.min()} to {ids_E.max()}, wanted below {len(table.code_of_id)}")
    distances_P, symbols_E, lows, new = _describe(ids_E, counts_P, len(table.code_of_id))
    return [
        split_planes(distances_P, DISTANCE_BYTES),
        *split_groups(symbols_E, counts_P, PLACES),
        lows[None],
        split_planes(table.code_of_id[new], table.code_bytes),
    ]


def most_bytes(k: int, table: CodeTable) -> int:
    """Upper bound of the bytes that a row of ``k`` ids takes in the sections."""
    return DISTANCE_BYTES + k * (2 + table.code_bytes)


def decode_ids(
    sections: Sections, first: int, table: CodeTable, rows_P: np.ndarray, counts_P: np.ndarray, ids_SK: np.ndarray
) -> None:
    """Decode P rows from the six sections starting at section ``first`` into ``ids_SK``; see ``fill_ids``.

    Raises CorruptCacheError.
    """
    starts = sections.starts[first : first + N_SECTIONS + 1]
    with refused_as_corrupt():
        fill_ids(sections.content, starts, table.id_of_code, table.code_bytes, rows_P, counts_P, ids_SK)


@compiled
def fill_ids(
    content: np.ndarray,
    starts: np.ndarray,
    id_of_code: np.ndarray,
    code_bytes: int,
    rows_P: np.ndarray,
    counts_P: np.ndarray,
    ids_SK: np.ndarray,
) -> None:
    """Decode P rows into rows ``rows_P`` of ``ids_SK``, zero beyond each row's count; other rows are left alone.

    Args:
        content: uint8; section i of the six is ``content[starts[i] : starts[i + 1]]``.
        id_of_code: int32 [V].
        rows_P: int32, below S.
        counts_P: int32, 1 to K.
        ids_SK: int32.

    Raises ValueError(what, value seen, value wanted) if a row refers to a missing id or the sections are inconsistent.
    Never accesses memory outside the arrays, whatever the sections hold.
    """
    n_rows, k_max = len(counts_P), ids_SK.shape[1]
    ids_N = ids_SK.reshape(-1)
    distances = content[starts[0] : starts[1]]
    n_lows = index(starts[5] - starts[4])
    lows = np.zeros(n_lows + index(k_max + 1), np.uint8)  # a row may read this far beyond the end before the check
    lows[:n_lows] = content[starts[4] : starts[5]]
    new, n_new = _new_ids(content[starts[5] : starts[6]], code_bytes, id_of_code)
    if len(distances) != DISTANCE_BYTES * n_rows:
        raise ValueError("bytes of distances", len(distances), DISTANCE_BYTES * n_rows)
    reference = np.full(k_max + 256, -1, np.int32)  # ids of the reference row, and -1 where other symbols point
    n_reference = index(0)
    words = np.zeros((k_max + 7) // 8, np.uint64)  # the row's symbols
    symbols = words.view(np.uint8)
    others = np.zeros((k_max + 63) // 64, np.uint64)  # one bit per rank whose id is not in the reference row
    at_0, at_1, at_2, next_low, next_new = index(starts[1]), index(starts[2]), index(starts[3]), index(0), index(0)
    lowest = np.int32(0)
    for p in range(n_rows):
        count = index(counts_P[p])
        n_0 = min(count, index(PLACES[0]))
        n_1 = min(count, index(PLACES[1])) - n_0
        n_2 = count - n_0 - n_1
        if at_0 + n_0 > index(starts[2]) or at_1 + n_1 > index(starts[3]) or at_2 + n_2 > index(starts[4]):
            raise ValueError("rows with enough symbols", p, n_rows)
        distance = int(distances[p]) | int(distances[n_rows + p]) << 8
        if distance > p:
            raise ValueError("distance of a reference row", distance, p)
        row, reference_row = index(rows_P[p]) * index(k_max), index(rows_P[p - distance]) * index(k_max)
        places = min(index(counts_P[p - distance]), count + index(CENTRE)) if distance > 0 else index(0)
        for k in range(places):
            reference[index(CENTRE) + k] = ids_N[reference_row + k]
        for k in range(places, n_reference):
            reference[index(CENTRE) + k] = -1
        n_reference = places
        n_words = count >> index(3)
        for w in range(n_words):
            word = load_word(content, _place(index(8) * w, at_0, at_1, at_2))
            words[w] = word
            others_byte = ((word >> index(7) & BYTE_BITS) * TO_TOP) >> index(56)  # the symbols' highest bits
            others[w >> index(3)] |= others_byte << (index(8) * (w & index(7)))
            for i in range(8):
                place = index(8) * w + index(i)
                ids_N[row + place] = reference[place + (word >> index(8 * i) & index(255))]
        for k in range(index(8) * n_words, count):
            symbol = index(content[_place(index(k), at_0, at_1, at_2)])
            symbols[k] = symbol
            others[k >> index(6)] |= (symbol >> index(7)) << (k & index(63))
            ids_N[row + k] = reference[k + symbol]
        at_0, at_1, at_2 = at_0 + n_0, at_1 + n_1, at_2 + n_2
        for o in range(index(len(others))):
            bits = others[o]
            others[o] = 0
            while bits:
                place = index(64) * o + index(trailing_zeros(bits))
                bits &= bits - index(1)
                symbol = index(symbols[place])
                is_new = index(symbol == index(NEW))
                number = (symbol - index(FROM_REFERENCE)) * index(256) + index(lows[next_low])
                number += is_new * (next_new - number)
                ids_N[row + place] = new[min(number, n_new)]
                next_new += is_new
                next_low += index(1) - is_new
        for k in range(count):
            lowest = min(lowest, ids_N[row + k])
        if next_low > n_lows:
            raise ValueError("rows with enough lows", p, n_rows)
        for k in range(count, index(k_max)):
            ids_N[row + k] = 0
    if lowest < 0:
        raise ValueError("symbols without an id", 1, 0)
    if at_0 != index(starts[2]) or at_1 != index(starts[3]) or at_2 != index(starts[4]):
        raise ValueError("symbols", starts[4] - starts[1], np.int64(counts_P.sum()))
    if next_low != n_lows or next_new != n_new:
        raise ValueError("lows and new ids", np.int64(n_lows + n_new), np.int64(next_low + next_new))


@compiled
def _place(k: np.uint64, at_0: np.uint64, at_1: np.uint64, at_2: np.uint64) -> np.uint64:
    """Offset of the symbol at rank ``k`` of a row whose symbols begin at these offsets of the three sections."""
    if k < index(PLACES[0]):
        return at_0 + k
    return at_1 + k - index(PLACES[0]) if k < index(PLACES[1]) else at_2 + k - index(PLACES[1])


@compiled
def _new_ids(planes: np.ndarray, code_bytes: int, id_of_code: np.ndarray) -> tuple[np.ndarray, np.uint64]:
    """List of new ids, int32, followed by a -1, and its length; from the byte planes of their codes."""
    n = len(planes) // code_bytes
    if len(planes) != n * code_bytes:
        raise ValueError("bytes of new ids", len(planes), n * code_bytes)
    new = np.full(n + 1, -1, np.int32)
    for i in range(index(n)):
        new[i] = np.int32(planes[i]) | np.int32(planes[index(n) + i]) << 8
    if code_bytes == 3:
        for i in range(index(n)):
            new[i] |= np.int32(planes[index(2 * n) + i]) << 16
    largest = np.int32(-1)
    for i in range(index(n)):
        largest = max(largest, new[i])
    if largest >= len(id_of_code):
        raise ValueError("largest code of an id", np.int64(largest), len(id_of_code) - 1)
    for i in range(index(n)):
        new[i] = id_of_code[index(new[i])]
    return new, index(n)


@compiled
def _describe(
    ids_E: np.ndarray, counts_P: np.ndarray, vocabulary: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Choose reference rows: distances uint16 [P], symbols uint8 [E], lows uint8 [L], new ids int32 [N]."""
    n_rows, n_ids = len(counts_P), len(ids_E)
    distances_P = np.zeros(n_rows, np.uint16)
    symbols_E = np.empty(n_ids, np.uint8)
    lows, n_lows = np.empty(n_ids, np.uint8), 0
    new, n_new = np.empty(n_ids, np.int32), 0
    first_P = np.cumsum(counts_P) - counts_P
    number_of_id = np.full(vocabulary, -1, np.int32)  # ids are numbered by first occurrence
    n_numbers = 0
    most = min(n_ids, vocabulary)
    listed_at = np.empty(most, np.int32)  # indexed by number, as the next four: place in the list of new ids
    recent = np.empty((most, RECENT), np.int32)  # rows
    n_seen = np.zeros(most, np.int32)
    in_reference_of = np.full(most, -1, np.int32)  # last row whose reference row contains it
    reference_place = np.empty(most, np.int32)
    votes = np.zeros(n_rows, np.int32)
    for p in range(n_rows):
        start, count = first_P[p], counts_P[p]
        best, most_votes = -1, 0
        for k in range(count):
            number = number_of_id[ids_E[start + k]]
            if number >= 0:
                for r in range(min(n_seen[number], RECENT)):
                    row = recent[number, r]
                    votes[row] += 1
                    better = votes[row] > most_votes or (votes[row] == most_votes and row > best)
                    if better and p - row <= FARTHEST:
                        best, most_votes = row, votes[row]
        for k in range(count):
            number = number_of_id[ids_E[start + k]]
            if number >= 0:
                for r in range(min(n_seen[number], RECENT)):
                    votes[recent[number, r]] = 0
        if best >= 0:
            distances_P[p] = p - best
            for j in range(counts_P[best]):
                number = number_of_id[ids_E[first_P[best] + j]]
                in_reference_of[number] = p
                reference_place[number] = j
        for k in range(count):
            token = ids_E[start + k]
            number = number_of_id[token]
            symbol = NEW
            if number >= 0:
                if recent[number, (n_seen[number] - 1) % RECENT] == p:
                    raise ValueError("an id occurs more than once in one row")
                offset = CENTRE + reference_place[number] - k
                if in_reference_of[number] == p and offset >= 0 and offset < FROM_REFERENCE:
                    symbol = offset
                elif listed_at[number] < LISTED:
                    symbol = FROM_REFERENCE + listed_at[number] // 256
                    lows[n_lows] = listed_at[number] % 256
                    n_lows += 1
            else:
                number = n_numbers
                n_numbers += 1
                number_of_id[token] = number
                listed_at[number] = n_new
            if symbol == NEW:
                new[n_new] = token
                n_new += 1
            symbols_E[start + k] = symbol
            recent[number, n_seen[number] % RECENT] = p
            n_seen[number] += 1
    return distances_P, symbols_E, lows[:n_lows], new[:n_new]
