"""Rows of ids round-trip with every kind of symbol; inconsistent sections are refused."""

import contextlib

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.errors import CorruptCacheError
from support.forge import frame_of, with_changed_bytes
from teacher_cache.codec.ids import decode_ids, encode_ids, most_bytes
from teacher_cache.codec.permutation import CodeTable, build_code_table
from teacher_cache.codec.sections import Sections

DISTANCES, SYMBOLS, LOWS, NEW = 0, slice(1, 4), 4, 5


def shuffled_table(vocabulary: int) -> CodeTable:
    return CodeTable(np.random.default_rng(vocabulary).permutation(vocabulary))


def similar_rows(
    seed: int, n_rows: int, k: int, vocabulary: int, ragged: bool = False, likeness: float = 0.9
) -> list[np.ndarray]:
    """Rows of distinct ids: most of an earlier row, a few of another, and random ones, in a slightly other order."""
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    for _ in range(n_rows):
        parts = [rng.choice(vocabulary, min(2 * k, vocabulary), replace=False)]
        for share in (0.1, 0.7) if rows and rng.random() < likeness else ():
            earlier = rows[rng.integers(len(rows))]
            parts.insert(0, earlier[rng.random(len(earlier)) < share])
        candidates = np.concatenate(parts)
        first = np.sort(np.unique(candidates, return_index=True)[1])
        row = candidates[first][: rng.integers(1, k + 1) if ragged else k]
        rows.append(row[np.argsort(np.arange(len(row)) + rng.normal(0, 2, len(row)))].astype(np.int32))
    return rows


def encode(rows: list[np.ndarray], table: CodeTable) -> list[bytes]:
    counts = np.array([len(row) for row in rows], np.int32)
    ids = np.concatenate([np.empty(0, np.int32), *rows])
    return [section.tobytes() for section in encode_ids(ids, counts, table)]


def decode(parts: list[bytes], counts: list[int], k: int, table: CodeTable) -> np.ndarray:
    """Decode into every second row of an array of -1, to detect writes to the rows around them."""
    ids = np.full((2 * len(counts) + 1, k), -1, np.int32)
    rows = np.arange(1, 2 * len(counts), 2, dtype=np.int32)
    sections = Sections(frame_of(parts), 6, sum(map(len, parts)))
    try:
        decode_ids(sections, 0, table, rows, np.array(counts, np.int32), ids)
    finally:
        assert (ids[::2] == -1).all(), "rows that are not asked for are not touched"
    return ids[1::2]


def assert_decoded(parts: list[bytes], rows: list[np.ndarray], k: int, table: CodeTable) -> None:
    found = decode(parts, [len(row) for row in rows], k, table)
    assert found.tolist() == [[*row, *[0] * (k - len(row))] for row in rows]


def symbols(parts: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(parts[SYMBOLS]), np.uint8)


@given(
    seed=st.integers(0, 10**6),
    n_rows=st.integers(0, 30),
    k=st.integers(1, 70),
    vocabulary=st.sampled_from([2, 80, 300, 5000, 65_535, 65_536, 65_537, 250_000]),
    ragged=st.booleans(),
    likeness=st.sampled_from([0.0, 0.5, 1.0]),
)
@example(0, 1, 1, 65_536, False, 0.0)
@example(0, 1, 1, 65_537, False, 0.0)
@settings(max_examples=100, deadline=None)
def test_round_trip(seed: int, n_rows: int, k: int, vocabulary: int, ragged: bool, likeness: float) -> None:
    table, k = shuffled_table(vocabulary), min(k, vocabulary)
    rows = similar_rows(seed, n_rows, k, vocabulary, ragged, likeness)
    parts = encode(rows, table)
    assert_decoded(parts, rows, k, table)
    assert sum(map(len, parts)) <= n_rows * most_bytes(k, table)


ROWS = [[10, 11, 12], [11, 10, 13], [10, 11, 12], [12, 13]]
COUNTS = [3, 3, 3, 2]
TABLE = CodeTable(np.arange(300)[::-1])
PARTS = [
    bytes([0, 1, 2, 1] + [0] * 4),  # the third row names the first, with which it has most in common
    b"".join(map(bytes, ([255, 255, 255], [65, 63, 255], [64, 64, 64], [66, 128]))),
    b"",
    b"",
    bytes([3]),  # 13, which is not in the reference row, was the fourth new id
    bytes([33, 32, 31, 30] + [1] * 4),  # 289 to 286: the codes of 10 to 13
]


def test_the_bytes_are_as_documented() -> None:
    rows = [np.array(row, np.int32) for row in ROWS]
    assert encode(rows, TABLE) == PARTS
    assert_decoded(PARTS, rows, 3, TABLE)


def test_symbols_are_grouped_by_place() -> None:
    """Rank k of the second row has the id at rank 2k + 6 of the first."""
    rows = [np.arange(100, dtype=np.int32), 6 + 2 * np.arange(30, dtype=np.int32)]
    parts = encode(rows, TABLE)
    assert [len(part) for part in parts[SYMBOLS]] == [8 + 8, 16 + 16, 76 + 6]
    assert parts[1][8:] + parts[2][16:] + parts[3][76:] == bytes(range(70, 100))
    assert_decoded(parts, rows, 100, TABLE)


@pytest.mark.parametrize(("vocabulary", "planes"), [(65_535, 2), (65_536, 2), (65_537, 3)])
def test_ids_take_a_third_plane_above_two_to_the_sixteen(vocabulary: int, planes: int) -> None:
    table = CodeTable(np.arange(vocabulary))
    rows = [np.array([0, vocabulary - 1], np.int32)]
    parts = encode(rows, table)
    assert parts[NEW] == b"".join(bytes([0, (vocabulary - 1) >> 8 * plane & 255]) for plane in range(planes))
    assert_decoded(parts, rows, 2, table)


def test_similar_rows_have_symbols_of_all_three_kinds() -> None:
    rows = similar_rows(0, 40, 70, 5000, ragged=True)
    parts = encode(rows, shuffled_table(5000))
    kinds = np.digitize(symbols(parts), [128, 255])
    n_reference, n_listed, n_new = np.bincount(kinds, minlength=3)
    assert n_reference > n_new > n_listed > 0
    assert (len(parts[LOWS]), len(parts[NEW])) == (n_listed, 2 * n_new)
    assert len(set(parts[DISTANCES][: len(rows)])) > 3, "the reference is not always the row before"
    assert_decoded(parts, rows, 70, shuffled_table(5000))


def test_ids_that_moved_too_far_refer_to_the_list_of_new_ids() -> None:
    """By more than 64 ranks forward or 63 backward."""
    rows = [np.arange(129, dtype=np.int32), np.arange(129, dtype=np.int32)[::-1]]
    parts = encode(rows, TABLE)
    moved = 128 - 2 * np.arange(129)
    named = (moved < -64) | (moved > 63)
    assert parts[LOWS] == rows[1][named].astype(np.uint8).tobytes()
    assert (np.sort(symbols(parts)) == np.sort([*[255] * 129, *moved[~named] + 64, *[128] * named.sum()])).all()
    assert_decoded(parts, rows, 129, TABLE)


def test_new_ids_beyond_the_reach_of_symbols_are_listed_again() -> None:
    n_rows, k, vocabulary = 600, 64, 50_000
    distinct = np.random.default_rng(0).permutation(vocabulary)[: n_rows * k].astype(np.int32)
    rows = list(distinct.reshape(n_rows, k))
    rows += [distinct[start::n_rows][:k] for start in range(0, n_rows, 100)]  # each id from another earlier row
    table = shuffled_table(vocabulary)
    parts = encode(rows, table)
    again = sum(int((np.flatnonzero(np.isin(distinct, row)) >= 32_512).sum()) for row in rows[n_rows:])
    written_again = len(parts[NEW]) // 2 - len(distinct)
    assert again - (len(rows) - n_rows) <= written_again <= again, "at most one of a row is in its reference row"
    assert written_again > 0
    assert max(symbols(parts)[symbols(parts) < 255]) == 254
    assert_decoded(parts, rows, k, table)


@pytest.mark.parametrize(("rows_back", "symbol", "lows"), [(65_535, 64, b""), (65_536, 128, b"\0")])
def test_a_reference_row_is_at_most_65535_rows_back(rows_back: int, symbol: int, lows: bytes) -> None:
    rows = [np.array([token], np.int32) for token in (5, *[6] * (rows_back - 1), 5)]
    parts = encode(rows, TABLE)
    assert (parts[1][-1], parts[LOWS]) == (symbol, lows)
    assert_decoded(parts, rows, 1, TABLE)


def test_similar_rows_take_fewer_bytes() -> None:
    table = shuffled_table(50_000)

    def size(likeness: float) -> int:
        parts = encode(similar_rows(0, 200, 64, 50_000, likeness=likeness), table)
        return len(zstandard.compress(b"".join(parts)))

    codes_alone = 200 * 64 * np.log2(50_000) / 8
    assert 0.95 * codes_alone < size(0.0) < 1.1 * codes_alone
    assert size(1.0) < 0.7 * codes_alone


def test_equal_rows_take_almost_no_bytes() -> None:
    row = similar_rows(0, 1, 64, 50_000)[0]
    frames = [zstandard.compress(b"".join(encode([row] * n, shuffled_table(50_000)))) for n in (2, 200)]
    assert len(frames[1]) < len(frames[0]) + 50


def test_frequent_ids_compress_better_with_their_code_table() -> None:
    """Why there is a code table."""
    rng, vocabulary = np.random.default_rng(0), 50_000
    names, shares = rng.permutation(vocabulary).astype(np.int32), np.cumsum(1 / np.arange(1, vocabulary + 1))
    drawn = names[np.searchsorted(shares, shares[-1] * rng.random((1000, 320)))]
    rows = [np.array(list(dict.fromkeys(row))[:16], np.int32) for row in drawn.tolist()]  # the first 16 that differ
    table = build_code_table(np.bincount(np.concatenate(rows), minlength=vocabulary))
    new = [encode(rows[:300], CodeTable(codes))[NEW] for codes in (table, np.arange(vocabulary))]
    assert len(new[0]) == len(new[1])
    assert len(zstandard.compress(new[0])) < 0.9 * len(zstandard.compress(new[1]))


@pytest.mark.parametrize("rows", [[[7, 8, 7]], [[7, 8], [8, 9], [9, 8, 9]], [[7, 7]] * 2])
def test_a_repeated_id_is_not_encoded(rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="an id occurs more than once in one row"):
        encode([np.array(row, np.int32) for row in rows], TABLE)


def replaced(*changed: tuple[int, list[int]]) -> list[bytes]:
    parts = list(PARTS)
    for number, values in changed:
        parts[number] = bytes(values)
    return parts


WRONG = {
    "one plane of distances": (replaced((0, [0, 1, 2, 1])), "bytes of distances: 4, wanted 8"),
    "a reference before the first row": (replaced((0, [0, 1, 3, 1] + [0] * 4)), "distance of .* row: 3, wanted 2"),
    "a reference far before it": (replaced((0, [0, 1, 2, 1, 0, 0, 0, 1])), "distance of .* row: 257, wanted 3"),
    "too few symbols": (replaced((1, list(PARTS[1][:-1]))), "rows with enough symbols: 3"),
    "no symbols": (replaced((1, [])), "rows with enough symbols: 0"),
    "a symbol too many": (replaced((1, [*PARTS[1], 64])), "symbols: 12, wanted 11"),
    "a symbol at a place that no row has": (replaced((2, [64])), "symbols: 12, wanted 11"),
    "a symbol at another such place": (replaced((3, [64])), "symbols: 12, wanted 11"),
    "a low too few": (replaced((4, [])), "rows with enough lows: 3"),
    "a low too many": (replaced((4, [3, 3])), "lows and new ids: 6, wanted 5"),
    "a new id too few": (replaced((5, [33, 32, 31, 1, 1, 1])), "symbols without an id"),
    "no new ids": (replaced((5, [])), "symbols without an id"),
    "a new id too many": (replaced((5, [33, 32, 31, 30, 29, 1, 1, 1, 1, 1])), "lows and new ids: 6, wanted 5"),
    "half a new id": (replaced((5, [33, 32, 31, 30, 1, 1, 1])), "bytes of new ids: 7, wanted 6"),
    "a code beyond the vocabulary": (replaced((5, [44, 32, 31, 30] + [1] * 4)), "largest code .*: 300, wanted 299"),
    "a number of no new id": (replaced((4, [4])), "symbols without an id"),
    "a large number of no new id": (replaced((1, [*PARTS[1][:-1], 254])), "symbols without an id"),
    "a listed id before any is new": (replaced((1, [128, *PARTS[1][1:]])), "rows with enough lows: 3"),
    "a place before the reference row": (replaced((1, [*PARTS[1][:3], 63, *PARTS[1][4:]])), "symbols without an id"),
    "a place beyond the reference row": (replaced((1, [*PARTS[1][:3], 67, *PARTS[1][4:]])), "symbols without an id"),
    "a place without a reference row": (replaced((0, [0, 0, 2, 1] + [0] * 4)), "symbols without an id"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_inconsistent_sections_are_refused(name: str) -> None:
    parts, message = WRONG[name]
    assert len(PARTS) == len(parts)
    with pytest.raises(CorruptCacheError, match=f"^{message}"):
        decode(parts, COUNTS, 3, TABLE)


def test_a_place_beyond_a_short_reference_row_is_refused() -> None:
    """Within the array, where the padding 0 is not an id of that row."""
    parts = [bytes([0, 1, 0, 0]), bytes([255, 64, 64]), b"", b"", b"", bytes([33, 1])]
    with pytest.raises(CorruptCacheError, match="symbols without an id"):
        decode(parts, [1, 2], 2, TABLE)


LENGTHS = [  # what is said of a section that is too short, and of one that is too long
    ("bytes of distances: 15, wanted 16", "bytes of distances: 17, wanted 16"),
    *[("rows with enough symbols: 7, wanted 8", "symbols: 241, wanted 240")] * 3,
    ("rows with enough lows", "lows and new ids: "),
    ("bytes of new ids", "bytes of new ids"),
]


@pytest.mark.parametrize("number", range(6))
def test_a_section_of_another_length_is_refused(number: int) -> None:
    rows = similar_rows(0, 8, 30, 300)
    parts = encode(rows, TABLE)
    assert_decoded(parts, rows, 30, TABLE)
    assert parts[number]
    for part, message in zip((parts[number][:-1], parts[number] + b"\0"), LENGTHS[number], strict=True):
        parts[number] = part
        with pytest.raises(CorruptCacheError, match=f"^{message}"):
            decode(parts, [30] * 8, 30, TABLE)


@given(seed=st.integers(0, 10**6), ragged=st.booleans(), vocabulary=st.sampled_from([300, 70_000]), data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_bytes_decode_within_bounds_or_are_refused(
    seed: int, ragged: bool, vocabulary: int, data: st.DataObject
) -> None:
    rows = similar_rows(seed, 8, 30, vocabulary, ragged)
    table = shuffled_table(vocabulary)
    parts = with_changed_bytes(encode(rows, table), data)
    with contextlib.suppress(CorruptCacheError):
        found = decode(parts, [len(row) for row in rows], 30, table)
        assert 0 <= found.min() <= found.max() < vocabulary


@pytest.mark.parametrize("ids", [[300], [-1], [2, 300]])
def test_an_id_outside_the_vocabulary_is_not_encoded(ids: list[int]) -> None:
    table = CodeTable(np.arange(300))
    with pytest.raises(ValueError, match="wanted below 300"):
        encode_ids(np.array(ids, np.int32), np.array([len(ids)], np.int32), table)
