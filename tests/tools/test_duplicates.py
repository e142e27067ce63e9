import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tools.duplicates import SampleKeys


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


def test_many_keys_are_compared_across_blocks() -> None:
    keys = [str(i) for i in range(600_000)]
    found = SampleKeys()
    found.add(keys)
    found.add(keys)
    repeated = found.repeated()
    assert not repeated[:600_000].any()
    assert repeated[600_000:].all()


def test_halves_of_keys_that_are_equal_do_not_make_them_equal(monkeypatch) -> None:
    class Known:
        def __init__(self, key: bytes, digest_size: int) -> None:
            self.digest = lambda: key.rjust(digest_size)

    monkeypatch.setattr(hashlib, "blake2b", Known)
    found = SampleKeys()
    found.add(["a2345678b2345678", "a2345678c2345678", "d2345678b2345678", "a2345678b2345678"])
    assert found.repeated().tolist() == [False, False, False, True]
