import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.signals.topk import block_top_k


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 5),
    vocabulary=st.integers(1, 3000),
    k=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    levels=st.sampled_from([3, 50, 10**6]),
    seed=st.integers(0, 10**6),
)
def test_equals_topk(n: int, vocabulary: int, k: int, dtype: torch.dtype, levels: int, seed: int) -> None:
    """Few levels make many ties, which may be broken either way: values must agree, and ids must point at them."""
    k = min(k, vocabulary)
    values = torch.randint(levels, (n, vocabulary), generator=torch.Generator().manual_seed(seed)).to(dtype)
    values[:, ::7] = -torch.inf
    top, ids = block_top_k(values, k)
    assert torch.equal(top, torch.topk(values, k, dim=1).values)
    assert torch.equal(values.gather(1, ids), top)
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("vocabulary", [8192, 8192 + 63])
@pytest.mark.parametrize("places", [[0, 1, 2, 3], [8188, 8189, 8190, 8191], [0, 64, 128, 8191]])
def test_entries_of_one_block_or_of_the_rest(vocabulary: int, places: list[int]) -> None:
    places = [place + vocabulary - 8192 for place in places]
    values = torch.zeros(1, vocabulary)
    values[0, places] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert block_top_k(values, 4)[1].tolist() == [places]
