import hashlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import CorruptCacheError
from teacher_cache.codec.permutation import (
    CodeTable,
    build_code_table,
    decode_table,
    encode_table,
    table_digest,
    table_path,
)


def weight(codes: np.ndarray) -> np.ndarray:
    return (codes // 256 + 1) * (codes % 256 + 1)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=1000))
@settings(max_examples=60, deadline=None)
def test_a_table_is_a_permutation_with_frequent_ids_on_small_cells(counts: list[int]) -> None:
    table = build_code_table(np.array(counts))
    assert table.dtype == np.uint32
    assert sorted(table.tolist()) == list(range(len(counts)))
    by_weight = np.array(counts)[table][np.argsort(weight(np.arange(len(counts))), kind="stable")]
    assert (np.diff(by_weight) <= 0).all()


@pytest.mark.parametrize("vocab_size", [65_535, 65_536, 65_537, 200_000])
def test_ids_beyond_two_bytes_are_the_rarest(vocab_size: int) -> None:
    counts = np.random.default_rng(0).integers(0, 1000, vocab_size)
    table = build_code_table(counts)
    assert np.array_equal(np.bincount(table, minlength=vocab_size), np.ones(vocab_size))
    if vocab_size > 65_536:
        assert counts[table[65_536:]].max() <= counts[table[:65_536]].min()


@pytest.mark.parametrize(("vocab_size", "code_bytes"), [(1, 2), (300, 2), (65_536, 2), (65_537, 3)])
def test_a_code_table_translates_both_ways(vocab_size: int, code_bytes: int) -> None:
    ids = np.random.default_rng(0).permutation(vocab_size)
    table = CodeTable(ids)
    assert table.code_bytes == code_bytes
    assert (table.id_of_code.dtype, table.code_of_id.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(table.id_of_code, ids)
    np.testing.assert_array_equal(table.code_of_id[ids], np.arange(vocab_size))


def test_the_table_depends_on_the_counts_alone() -> None:
    counts = np.random.default_rng(0).integers(0, 3, 5000)
    first, second = build_code_table(counts), build_code_table(counts.astype(np.uint64))
    np.testing.assert_array_equal(first, second)
    assert encode_table(first) == encode_table(second)


def test_the_file_is_zstd_of_little_endian_ids_named_by_their_digest() -> None:
    table = build_code_table(np.arange(300))
    plain = table.astype("<u4").tobytes()
    assert zstandard.decompress(encode_table(table)) == plain
    assert table_digest(table) == hashlib.sha256(plain).hexdigest()
    assert table_path(table_digest(table)) == f"tables/{hashlib.sha256(plain).hexdigest()}.zst"
    np.testing.assert_array_equal(decode_table(encode_table(table), 300, table_digest(table), "x"), table)


@pytest.mark.parametrize("bad_id", [0, 299, 300, 2**31, 2**32 - 1])
def test_a_table_that_is_not_a_permutation_is_refused(bad_id: int) -> None:
    table = build_code_table(np.arange(300))
    table[np.flatnonzero(table == 5)] = bad_id
    with pytest.raises(CorruptCacheError, match=r"^here: .*permutation"):
        decode_table(encode_table(table), 300, table_digest(table), "here")


def test_another_digest_or_size_is_refused() -> None:
    table, other = build_code_table(np.arange(300)), build_code_table(np.ones(300))
    with pytest.raises(CorruptCacheError, match=r"^here: .*digest"):
        decode_table(encode_table(other), 300, table_digest(table), "here")
    for vocab_size in (299, 301):
        with pytest.raises(CorruptCacheError, match=r"^here: .*bytes"):
            decode_table(encode_table(table), vocab_size, table_digest(table), "here")
