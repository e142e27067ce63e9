"""Attention rows from q and k against a float64 softmax, and the choice of attention heads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.signals.attention import capture
from teacher_cache.signals.attention.capture import (
    attention_rows,
    choose_heads,
    merge_ranks,
    to_attention_sample,
)


def plain_weights(query: torch.Tensor, key: torch.Tensor, scaling: float, softcap: float | None) -> np.ndarray:
    """All causal rows, float64 [H, S, S]."""
    q, k = query.double().numpy(), key.double().numpy()
    length, heads = q.shape[:2]
    weights = np.zeros((heads, length, length))
    for h in range(heads):
        scores = q[:, h] @ k[:, h * k.shape[1] // heads].T * scaling
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        for t in range(length):
            row = np.exp(scores[t, : t + 1] - scores[t, : t + 1].max())
            weights[h, t, : t + 1] = row / row.sum()
    return weights


@given(
    length=st.integers(1, 20),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    n_keys=st.integers(1, 24),
    softcap=st.sampled_from([None, 2.0]),
    chunk=st.sampled_from([1, 40, 1 << 20]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_rows_equal_a_plain_softmax(
    length: int, groups: int, per_group: int, n_keys: int, softcap: float | None, chunk: int, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    query = torch.randn(length, groups * per_group, 8, generator=rng)
    key = torch.randn(length, groups, 8, generator=rng)
    positions = torch.arange(0, length, 2)
    before, capture.CHUNK_WEIGHTS = capture.CHUNK_WEIGHTS, chunk
    try:
        rows = attention_rows(query, key, positions, 0.7, softcap, n_keys, first_head=5)
    finally:
        capture.CHUNK_WEIGHTS = before
    wanted_HPS = plain_weights(query, key, 0.7, softcap)[:, ::2]
    entropy = -(wanted_HPS * np.log(np.where(wanted_HPS > 0, wanted_HPS, 1))).sum(axis=2).mean(axis=1)
    assert rows.heads_H.tolist() == list(range(5, 5 + groups * per_group))
    np.testing.assert_allclose(rows.entropy_H, entropy, atol=1e-5)
    wanted_PHS = wanted_HPS.transpose(1, 0, 2)
    largest = -np.sort(-wanted_PHS, axis=2)[:, :, :n_keys]
    found, keys = rows.weights_PHM.numpy(), rows.keys_PHM.numpy()
    assert found.shape == (len(positions), groups * per_group, n_keys)
    np.testing.assert_allclose(found[:, :, : largest.shape[2]], largest, atol=1e-5)
    assert not found[:, :, largest.shape[2] :].any()
    at_keys = np.take_along_axis(wanted_PHS, keys.astype(np.int64), axis=2)
    np.testing.assert_allclose(at_keys[found > 0], found[found > 0], atol=1e-5)
    assert not keys[found == 0].any()


def test_a_sequence_without_rows() -> None:
    rows = attention_rows(torch.randn(4, 2, 8), torch.randn(4, 1, 8), torch.empty(0, dtype=torch.long), 1.0, None, 3)
    sample = to_attention_sample(np.empty(0, np.int32), rows, 1)
    assert sample.weights.shape == sample.keys.shape == (0, 1, 3)
    assert sample.heads.tolist() == [0]


def rows_of_weights(weights_HPS: torch.Tensor, n_keys: int) -> capture.AttentionRows:
    return capture._join([capture._reduce(weights_HPS, n_keys)], 0, len(weights_HPS), n_keys)


def weights_of_entropies() -> torch.Tensor:
    """Rows [4, 2, 8] of four attention heads: uniform, one key, two keys, uniform over four."""
    weights = torch.zeros(4, 2, 8)
    weights[0], weights[1, :, 3] = 1 / 8, 1.0
    weights[2, :, :2], weights[3, :, :4] = 1 / 2, 1 / 4
    return weights


def test_the_most_focused_heads_come_first() -> None:
    rows = rows_of_weights(weights_of_entropies(), 8)
    np.testing.assert_allclose(rows.entropy_H, np.log([8, 1, 2, 4]), atol=1e-6)
    assert to_attention_sample(np.array([7, 9]), rows, 3).heads.tolist() == [1, 2, 3]
    assert weights_of_entropies().mean(dim=2).unique().tolist() == [1 / 8], "the mean of a row tells heads nothing"


@pytest.mark.parametrize("heads", [[2], [3, 0], [0, 1, 2, 3], [3, 1, 0]])
def test_listed_heads_keep_the_order_of_the_list(heads: list[int]) -> None:
    weights = weights_of_entropies()
    sample = to_attention_sample(np.array([7, 9]), rows_of_weights(weights, 8), heads)
    assert sample.heads.tolist() == heads
    largest = weights[heads].transpose(0, 1).sort(dim=2, descending=True).values
    np.testing.assert_array_equal(sample.weights, largest.numpy())


@pytest.mark.parametrize("heads", [1, 3, [2, 0]])
def test_choosing_heads_per_rank_equals_choosing_among_all(heads: int | list[int]) -> None:
    weights = weights_of_entropies()
    whole = to_attention_sample(np.array([7, 9]), rows_of_weights(weights, 4), heads)
    ranks = []
    for first in (0, 2):
        rows = rows_of_weights(weights[first : first + 2], 4)
        ranks.append(choose_heads(rows._replace(heads_H=rows.heads_H + first), heads, first))
    merged = to_attention_sample(np.array([7, 9]), merge_ranks(ranks), heads)
    for name in ("heads", "weights", "keys"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
