import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.reference_rows import sparse_rows, target_of
from trainer.losses.targets import draws_target, log1mexp, softened


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_weights_are_the_softened_probabilities_and_the_bucket_has_the_rest(temperature: float) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(4, 20, dtype=torch.float64) * 3
    rows = sparse_rows(teacher, 5, temperature, torch.tensor([5, 1, 4, 2]))
    target = target_of(rows, 20, temperature)
    p = (teacher / temperature).softmax(-1)
    torch.testing.assert_close(target.weights_NK, p.gather(1, rows[0]) * target.listed_NK)
    assert target.rest_N is not None
    torch.testing.assert_close(target.weights_NK.sum(1) + target.rest_N, torch.ones(4, dtype=torch.float64))
    outcomes = torch.cat([target.weights_NK, target.rest_N[:, None]], dim=1)
    torch.testing.assert_close(target.entropy_N, torch.special.entr(outcomes).sum(1))


def test_one_log_partition_softens_and_at_temperature_1_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    log_p = (torch.randn(4, 20, dtype=torch.float64, generator=generator) * 3).log_softmax(-1)
    for temperature in (0.5, 1.0, 3.0):
        log_partition = torch.logsumexp(log_p / temperature, -1)
        torch.testing.assert_close(softened(log_p, log_partition, temperature), (log_p / temperature).log_softmax(-1))
    assert torch.equal(softened(log_p, torch.zeros(4, dtype=torch.float64), 1.0), log_p)


def test_padding_repeats_a_listed_token() -> None:
    ids = torch.tensor([[30, 7, 5, 0]])
    logprobs = torch.tensor([[-0.5, -1.5, -2.0, -torch.inf]])
    target = target_of((ids, logprobs, torch.zeros(1)), vocabulary=20)
    assert target.listed_NK.tolist() == [[False, True, True, False]]
    assert target.ids_NK.tolist() == [[7, 7, 5, 7]]
    assert target.weights_NK[0, [0, 3]].tolist() == [0, 0]


def test_draws_share_the_mass_they_were_drawn_from() -> None:
    teacher = torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head = target_of(sparse_rows(teacher, 2, 1.0), 9)
    assert head.rest_N is not None
    draws = torch.tensor([[1, 1, 4, 40]] * 3)  # 40: the student has no such token
    target = draws_target(head, draws, torch.ones(3, dtype=torch.float64), 9)
    assert target.rest_N is None
    torch.testing.assert_close(target.weights_NK[:, 2:5], (head.rest_N / 4)[:, None].expand(-1, 3))
    assert target.weights_NK[:, 5].abs().max() == 0
    alone = draws_target(None, draws, torch.ones(3, dtype=torch.float64), 9)
    assert alone.weights_NK.tolist() == [[0.25, 0.25, 0.25, 0]] * 3


@given(st.floats(-700, 0, exclude_max=True))
def test_log1mexp(x: float) -> None:
    value = log1mexp(torch.tensor(x, dtype=torch.float64)).item()
    expected = math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x))
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_log1mexp_of_certainty() -> None:
    assert log1mexp(torch.tensor([0.0, -torch.inf])).tolist() == [-math.inf, 0.0]
