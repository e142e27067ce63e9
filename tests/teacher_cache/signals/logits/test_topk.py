import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.signals.logits.topk import block_top_k


def check(values: torch.Tensor, k: int) -> None:
    top, indices = block_top_k(values, k)
    assert top.dtype == values.dtype
    assert indices.dtype == torch.int64
    assert top.shape == indices.shape == (len(values), k)
    assert torch.equal(top, torch.topk(values, k, dim=1).values)
    assert torch.equal(values.gather(1, indices), top)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("vocab_size", "k"),
    [
        (64, 1),
        (129, 1),
        (193, 1),
        (1000, 3),
        (1000, 7),
        (1000, 8),
        (4095, 20),
        (4096, 31),
        (4097, 32),
        (300, 299),
        (300, 300),
    ],
)
def test_values_are_those_of_torch_topk_and_indices_point_at_them(dtype: torch.dtype, vocab_size: int, k: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size + k)
    check(torch.randn(9, vocab_size, generator=generator).to(dtype), k)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    check(torch.randint(0, levels, (20, 2000), generator=generator).float(), 12)


@pytest.mark.parametrize("finite", [0, 1, 5, 40])
def test_rows_with_masked_entries(finite: int) -> None:
    generator = torch.Generator().manual_seed(finite)
    values = torch.full((10, 1500), -torch.inf)
    for row in values:
        row[torch.randperm(1500, generator=generator)[:finite]] = torch.randn(finite, generator=generator)
    check(values, 10)


@pytest.mark.parametrize("start", [0, 960, 990])
def test_largest_entries_side_by_side(start: int) -> None:
    """In one block, across a block boundary, and after the last whole block."""
    generator = torch.Generator().manual_seed(start)
    values = torch.randn(4, 1000, generator=generator)
    values[:, start : start + 7] += 100
    check(values, 7)


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
    """Few levels make many ties, which may be broken either way: values must agree, and ids must refer to them."""
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
