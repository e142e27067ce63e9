"""Draws have exactly the right probabilities: tested by integrating over the strata, not by sampling."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import DrawsCapture
from teacher_cache.records import Request
from teacher_cache.signals.draws.capture import draw, uniforms

GRID = 20_000  # places in [0, 1) at which the inverse of the cumulative distribution is looked at


def probabilities(logits: torch.Tensor, temperature: float, head: list[int]) -> np.ndarray:
    """The definition, in float64."""
    p = (logits.double() / temperature).softmax(-1).numpy().copy()
    p[:, head] = 0
    return p / p.sum(axis=1, keepdims=True)


@given(
    vocabulary=st.integers(3, 400),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.3, 3.0]),
    temperature=st.sampled_from([1.0, 3.0]),
    k=st.integers(0, 2),
)
@settings(deadline=None, max_examples=40)
def test_each_token_has_its_share_of_the_unit_interval(
    vocabulary: int, seed: int, scale: float, temperature: float, k: int
) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(2, vocabulary) * scale
    head = list(range(k))
    grid = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    ids = draw(logits, torch.tensor([head] * 2) if k else None, grid.expand(2, 1, -1), [temperature]).ids_NTM
    for row, expected in zip(ids[:, 0].numpy(), probabilities(logits, temperature, head), strict=True):
        found = np.bincount(row, minlength=vocabulary) / GRID
        assert np.abs(found - expected).max() < 1.5 / GRID + 1e-6
        assert (np.diff(row) >= 0).all()


def test_entropy_is_of_the_whole_softened_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 333) * 4
    logits[3, 5] = -torch.inf
    rows = draw(logits, torch.tensor([[0, 1]] * 40), torch.zeros(40, 2, 1, dtype=torch.float64), [1.0, 3.0])
    for column, temperature in enumerate((1.0, 3.0)):
        expected = torch.special.entr((logits.double() / temperature).softmax(-1)).sum(-1)
        torch.testing.assert_close(rows.entropy_NT[:, column].double(), expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_probability_0_are_never_drawn() -> None:
    logits = torch.full((1, 200), -torch.inf)
    logits[0, [0, 64, 130, 131, 199]] = 0.0
    edges = torch.tensor([0.0, 0.25 - 1e-12, 0.25, 0.5, 0.75, 1 - 1e-16, 1.0], dtype=torch.float64)
    ids = draw(logits, torch.tensor([[0]]), edges.expand(1, 1, -1), [1.0]).ids_NTM
    assert ids[0, 0].tolist() == [64, 64, 130, 131, 199, 199, 199]


def test_a_row_without_a_tail_draws_some_token() -> None:
    ids = draw(torch.zeros(1, 3), torch.tensor([[0, 1, 2]]), torch.full((1, 1, 4), 0.3, dtype=torch.float64), [1.0])
    assert set(ids.ids_NTM.flatten().tolist()) <= {0, 1, 2}


def test_uniforms_lie_in_their_strata_and_follow_the_seed() -> None:
    capture = DrawsCapture(n=7, temperatures=[1.0, 3.0])
    rows = np.arange(4, dtype=np.int32)
    places = uniforms(Request(np.arange(5), logits_positions=rows, seed=11), capture)
    assert places.shape == (4, 2, 7)
    assert (np.floor(places * 7) == np.arange(7)).all()
    again = uniforms(Request(np.arange(9), logits_positions=rows, seed=11), capture)
    assert np.array_equal(places, again)
    other = uniforms(Request(np.arange(5), logits_positions=rows, seed=12), capture)
    assert not np.isin(places, other).any()


def test_uniforms_are_uniform() -> None:
    capture = DrawsCapture(n=2)
    request = Request(np.arange(2), logits_positions=np.arange(20_000, dtype=np.int32), seed=3)
    offsets = uniforms(request, capture) * 2 % 1
    counts = np.histogram(offsets, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 2_000).max() < 5 * np.sqrt(2_000)


@pytest.mark.parametrize("rows", [1, 31, 32, 65])
def test_draws_do_not_depend_on_the_chunk_size(rows: int) -> None:
    torch.manual_seed(0)
    logits, places = torch.randn(rows, 100), torch.rand(rows, 1, 5, dtype=torch.float64)
    head = torch.randint(0, 100, (rows, 3))
    together = draw(logits, head, places, [2.0])
    for row in range(rows):
        alone = draw(logits[row : row + 1], head[row : row + 1], places[row : row + 1], [2.0])
        assert torch.equal(together.ids_NTM[row], alone.ids_NTM[0])
