import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import LogitsCapture
from schemas.errors import UserError
from teacher_cache.records import Request
from teacher_cache.signals.logits.capture import LogitsRows, reduce_logits, select_counts, to_sample


def random_logits(rows: int, vocab_size: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * vocab_size)
    logits = torch.randn(rows, vocab_size, generator=generator) * 5 + 30
    return logits.to(dtype), torch.randint(0, vocab_size, (rows,), generator=generator)


def request(num_tokens: int, positions: list[int]) -> Request:
    return Request(np.zeros(num_tokens, np.uint32), np.array(positions, np.int32))


def check_against_float64(logits: torch.Tensor, next_ids: torch.Tensor, k: int, temperatures: list[float]) -> None:
    rows = reduce_logits(logits, next_ids, k, temperatures)
    wide = logits.double()
    logprobs = torch.log_softmax(wide, dim=1)
    torch.testing.assert_close(rows.logprobs_NK.double(), logprobs.topk(k, dim=1).values, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(logprobs.gather(1, rows.ids_NK.long()), rows.logprobs_NK.double(), rtol=1e-6, atol=1e-5)
    expected = logprobs.gather(1, next_ids[:, None].long())[:, 0]
    torch.testing.assert_close(rows.next_logprob_N.double(), expected, rtol=1e-6, atol=1e-5)
    for column, temperature in enumerate(temperatures):
        expected = torch.logsumexp(logprobs / temperature, dim=1)
        torch.testing.assert_close(rows.log_partition_NT[:, column].double(), expected, rtol=1e-6, atol=1e-5)
    assert not rows.log_partition_NT[:, temperatures.index(1.0)].any(), "exactly 0 at temperature 1"
    expected = -(logprobs.exp() * logprobs).sum(dim=1)
    torch.testing.assert_close(rows.entropy_N.double(), expected, rtol=1e-5, atol=1e-5)
    assert [part.dtype for part in rows] == [torch.int32, *[torch.float32] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "vocab_size", "k"), [(1, 40, 40), (5, 1000, 4), (70, 3001, 16)])
@pytest.mark.parametrize("temperatures", [[1.0], [3.0, 1.0, 0.25], [1.0, 50.0]])
def test_reduction_agrees_with_float64(
    rows: int, vocab_size: int, k: int, temperatures: list[float], dtype: torch.dtype
) -> None:
    check_against_float64(*random_logits(rows, vocab_size, dtype), k, temperatures)


@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
def test_logits_far_from_zero_neither_overflow_nor_vanish(offset: float) -> None:
    logits, next_ids = random_logits(3, 50)
    rows = reduce_logits(logits + offset, next_ids, 5, [1.0, 0.1])
    expected = torch.log_softmax((logits + offset).double(), dim=1).topk(5).values
    torch.testing.assert_close(rows.logprobs_NK.double(), expected, rtol=0, atol=2e-3)
    expected = torch.logsumexp(torch.log_softmax((logits + offset).double(), dim=1) / 0.1, dim=1)
    torch.testing.assert_close(rows.log_partition_NT[:, 1].double(), expected, rtol=1e-5, atol=1e-5)


def test_masked_logits() -> None:
    logits = torch.full((2, 500), -torch.inf)
    logits[:, [3, 400, 7]] = torch.tensor([2.0, 1.0, 0.0])
    rows = reduce_logits(logits, torch.tensor([400, 9]), 4, [1.0, 2.0])
    expected = torch.log_softmax(torch.tensor([2.0, 1.0, 0.0]), dim=0)
    torch.testing.assert_close(rows.logprobs_NK[0, :3], expected)
    assert rows.ids_NK[0, :3].tolist() == [3, 400, 7]
    assert rows.logprobs_NK[:, 3].tolist() == [-np.inf, -np.inf]
    torch.testing.assert_close(rows.next_logprob_N[0], expected[1])
    assert rows.next_logprob_N[1] == -np.inf
    assert rows.log_partition_NT.isfinite().all()
    sample = to_sample(rows, request(3, [0, 1]), LogitsCapture(k=4, temperatures=[1.0, 2.0]))
    assert sample.counts.tolist() == [3, 3]
    assert sample.ids[:, 3].tolist() == [0, 0]


def naive_count(logprobs: list[float], mass: float) -> int:
    total, count = 0.0, 0
    for logprob in logprobs:
        if logprob == -np.inf or (count and total >= mass):
            break
        total += np.exp(np.float64(logprob))
        count += 1
    return count


@given(
    weights=st.lists(st.lists(st.integers(0, 50), min_size=6, max_size=6), min_size=1, max_size=8),
    outside=st.integers(0, 50),
    mass=st.floats(0.01, 1),
)
@settings(max_examples=100, deadline=None)
def test_nucleus_counts_equal_a_plain_loop(weights: list[list[int]], outside: int, mass: float) -> None:
    weights_SK = np.sort(np.array(weights, np.float64))[:, ::-1]
    weights_SK[:, 0] += 1  # something is possible
    with np.errstate(divide="ignore"):
        logprobs = np.log(weights_SK / (weights_SK.sum(axis=1, keepdims=True) + outside)).astype(np.float32)
    counts = select_counts(logprobs, LogitsCapture(policy="nucleus", k=6, mass=mass))
    assert counts.dtype == np.int32
    assert counts.tolist() == [naive_count(row, mass) for row in logprobs.tolist()]
    kept = select_counts(logprobs, LogitsCapture(policy="top_k", k=6))
    assert kept.tolist() == (weights_SK > 0).sum(axis=1).tolist()


def test_nucleus_counts_of_a_known_row() -> None:
    logprobs = np.log(np.array([[0.5, 0.25, 0.125, 0.0625]], np.float32))
    for mass, count in [(0.01, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.9, 4), (1.0, 4)]:
        assert select_counts(logprobs, LogitsCapture(policy="nucleus", k=4, mass=mass)).tolist() == [count]


def test_a_sample_follows_the_documented_conventions() -> None:
    rows = LogitsRows(
        ids_NK=torch.tensor([[5, 6, 7], [8, 9, 10]], dtype=torch.int32),
        logprobs_NK=torch.log(torch.tensor([[0.5, 0.25, 0.125], [0.9, 0.05, 0.01]])),
        next_logprob_N=torch.tensor([-1.0, -2.0]),
        log_partition_NT=torch.tensor([[0.0, 2.0], [0.0, 4.0]]),
        entropy_N=torch.tensor([1.0, 0.5]),
    )
    sample = to_sample(rows, request(5, [1, 4]), LogitsCapture(policy="nucleus", k=3, mass=0.7))
    assert (sample.num_tokens, sample.positions.tolist()) == (5, [1, 4])
    assert sample.counts.tolist() == [2, 1]
    assert sample.ids.tolist() == [[5, 6, 0], [8, 0, 0]]
    assert sample.logprobs[0, 2] == sample.logprobs[1, 1] == -np.inf
    np.testing.assert_allclose(np.exp(sample.logprobs[:, 0]), [0.5, 0.9], rtol=1e-6)
    assert sample.next_logprob[0] == -1
    assert np.isnan(sample.next_logprob[1]), "nothing follows the sequence's last row"
    assert sample.log_partition.tolist() == [[0, 2], [0, 4]]
    assert rows.next_logprob_N.tolist() == [-1, -2]  # the engine's tensor is left alone
    dtypes = {name: array.dtype for name, array in vars(sample).items() if name != "num_tokens"}
    assert dtypes == {
        "positions": np.int32, "counts": np.int32, "ids": np.int32, "logprobs": np.float32,
        "next_logprob": np.float32, "log_partition": np.float32,
    }  # fmt: skip


def test_only_the_sequences_last_row_has_no_next_token() -> None:
    logits, next_ids = random_logits(2, 50)
    rows = reduce_logits(logits, next_ids, 4, [1.0, 3.0])
    within = to_sample(rows, request(9, [2, 7]), LogitsCapture(k=4))
    np.testing.assert_array_equal(within.next_logprob, rows.next_logprob_N.numpy())
    at_end = to_sample(rows, request(8, [2, 7]), LogitsCapture(k=4))
    assert np.isnan(at_end.next_logprob).tolist() == [False, True]


def test_a_sequence_without_rows_gives_an_empty_sample() -> None:
    rows = reduce_logits(torch.empty(0, 50), torch.empty(0, dtype=torch.long), 4, [1.0, 3.0])
    sample = to_sample(rows, request(6, []), LogitsCapture(k=4))
    assert sample.num_tokens == 6
    assert sample.ids.shape == sample.logprobs.shape == (0, 4)
    assert sample.log_partition.shape == (0, 2)
    assert len(sample.positions) == len(sample.counts) == len(sample.next_logprob) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = torch.randn(3, 300)
    logits[1, 7] = bad
    rows = reduce_logits(logits, torch.zeros(3, dtype=torch.long), 4, [1.0])
    with pytest.raises(UserError, match="logits of token 5 of a sequence are not finite"):
        to_sample(rows, request(9, [2, 5, 6]), LogitsCapture(k=4, temperatures=[1.0]))


def test_softened_probabilities_follow_from_log_partitions() -> None:
    """log p_T(i) = log p(i) / T - log Σ_v p(v)^(1/T)."""
    torch.manual_seed(0)
    logits_NV = torch.randn(9, 400) * 4
    rows = reduce_logits(logits_NV, torch.zeros(9, dtype=torch.long), 30, [1.0, 3.0])
    softened = rows.logprobs_NK / 3 - rows.log_partition_NT[:, 1:]
    expected = torch.log_softmax(logits_NV.double() / 3, dim=1).gather(1, rows.ids_NK.long())
    assert torch.allclose(softened.double(), expected, atol=1e-5)
