import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import CorruptCacheError
from teacher_cache.codec.permutation import (
    build_code_table,
    decode_table,
    encode_table,
    invert_code_table,
    table_digest,
)


@settings(max_examples=30, deadline=None)
@given(vocab_size=st.integers(2, 3000), seed=st.integers(0, 1000))
def test_a_table_is_a_permutation_and_survives_its_file(vocab_size: int, seed: int) -> None:
    table = build_code_table(np.random.default_rng(seed).zipf(1.5, vocab_size).clip(0, 10**6))
    assert np.array_equal(np.sort(table), np.arange(vocab_size))
    assert np.array_equal(invert_code_table(table)[table], np.arange(vocab_size))
    again = decode_table(encode_table(table), vocab_size, table_digest(table), "table")
    assert np.array_equal(again, table)


def test_frequent_ids_get_small_bytes() -> None:
    counts = np.arange(70_000)[::-1]  # id 0 is the most frequent
    codes = invert_code_table(build_code_table(counts))
    assert codes[:3].tolist() == [0, 1, 256]
    assert (codes[65_536:] == np.arange(65_536, 70_000)).all()
    cost = (codes[:65_536] % 256 + 1) * (codes[:65_536] // 256 + 1)
    assert (np.diff(cost) >= 0).all()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda table: encode_table(table[::-1]), "digest"),
        (lambda table: encode_table(table)[:-4], "zstd"),
        (lambda table: zstandard.compress(bytes(4 * 99)), "declares 396 bytes"),
        (lambda table: b"", "zstd"),
    ],
)
def test_a_table_that_is_not_the_one_named_is_refused(change, wanted: str) -> None:
    table = build_code_table(np.arange(100))
    with pytest.raises(CorruptCacheError, match=f"^where: .*{wanted}"):
        decode_table(change(table), 100, table_digest(table), "where")


def test_a_table_that_is_no_permutation_is_refused() -> None:
    table = np.zeros(100, np.uint32)
    with pytest.raises(CorruptCacheError, match="not a permutation"):
        decode_table(encode_table(table), 100, table_digest(table), "where")
    table[5] = 2**31
    with pytest.raises(CorruptCacheError, match="not a permutation"):
        decode_table(encode_table(table), 100, table_digest(table), "where")
