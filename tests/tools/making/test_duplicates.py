import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tools.making import duplicates
from tools.making.duplicates import SampleKeys


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=5), max_size=6))
def test_all_but_the_first_with_a_key_are_repeated(shards: list[list[str]]) -> None:
    found, seen, wanted, flat = SampleKeys(), set(), [], []
    for shard in shards:
        found.add(shard)
        for key in shard:
            wanted.append(key in seen)
            seen.add(key)
            flat.append(key)
    assert len(found) == len(flat)
    assert found.repeated().tolist() == wanted
    assert [found.first_like(i) for i in range(len(flat))] == [flat.index(key) for key in flat]


@pytest.mark.parametrize("compared", range(1, 9))
def test_keys_are_compared_across_blocks(compared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", compared)
    found = SampleKeys()
    found.add("abcd")
    found.add("abce")
    assert found.repeated().tolist() == 4 * [False] + 3 * [True] + [False]


def test_keys_that_share_half_of_their_hash_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xxhash, "xxh3_128_digest", bytes)
    found = SampleKeys()
    found.add(["a2345678b2345678", "a2345678c2345678", "d2345678b2345678", "a2345678b2345678"])
    assert found.repeated().tolist() == [False, False, False, True]
