import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import LogitsCapture
from teacher_cache.signals.entropy import bucket_entropy
from teacher_cache.signals.logits import reduce_logits, select_counts, to_sample

TEMPERATURES = [1.0, 3.0, 0.7]


def reference(logits_NV: torch.Tensor, temperature: float) -> np.ndarray:
    return torch.logsumexp(logits_NV.double() / temperature, dim=1).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])
def test_against_float64(dtype: torch.dtype, shift: float) -> None:
    torch.manual_seed(0)
    logits_NV = (torch.randn(70, 5000) * 5 + shift).to(dtype)
    next_ids = torch.randint(5000, (70,))
    rows = reduce_logits(logits_NV, next_ids, 20, TEMPERATURES)
    logprobs_NV = torch.log_softmax(logits_NV.double(), dim=1)
    tolerance = 1e-4 if shift else 1e-5  # float32 holds 500 to 3e-5
    assert torch.allclose(rows.logprobs_NK.double(), logprobs_NV.topk(20).values, atol=tolerance, rtol=0)
    assert torch.allclose(rows.logprobs_NK.double(), logprobs_NV.gather(1, rows.ids_NK.long()), atol=tolerance, rtol=0)
    assert torch.allclose(
        rows.next_logprob_N.double(), logprobs_NV.gather(1, next_ids[:, None]).squeeze(1), atol=tolerance, rtol=0
    )
    for column, temperature in enumerate(TEMPERATURES):
        expected = reference(logits_NV, temperature)
        assert np.abs(rows.log_partition_NT[:, column].numpy() - expected).max() < max(tolerance, 2e-7 * abs(shift) * 2)


def test_softened_probabilities_follow_exactly() -> None:
    """log p_T(i) = (log p_1(i) + Z_1) / T - Z_T."""
    torch.manual_seed(0)
    logits_NV = torch.randn(9, 400) * 4
    rows = reduce_logits(logits_NV, torch.zeros(9, dtype=torch.long), 30, [1.0, 3.0])
    softened = (rows.logprobs_NK + rows.log_partition_NT[:, :1]) / 3 - rows.log_partition_NT[:, 1:]
    expected = torch.log_softmax(logits_NV.double() / 3, dim=1).gather(1, rows.ids_NK.long())
    assert torch.allclose(softened.double(), expected, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    mass=st.floats(0.01, 1.0),
    k=st.integers(1, 12),
)
def test_nucleus_is_the_smallest_set_that_reaches_the_mass(seed: int, mass: float, k: int) -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed)) * 3
    logprobs = torch.log_softmax(logits, dim=1).topk(k).values.numpy()
    counts = select_counts(logprobs, LogitsCapture(policy="nucleus", k=k, mass=mass))
    for row, count in zip(logprobs, counts, strict=True):
        expected, total = k, 0.0
        for i, p in enumerate(np.exp(row.astype(np.float64))):
            total += p
            if total >= mass:
                expected = i + 1
                break
        assert count == expected


def test_masked_entries_are_not_kept() -> None:
    logits = torch.zeros(2, 300)
    logits[:, 5:] = -torch.inf
    capture = LogitsCapture(k=8)
    sample = to_sample(reduce_logits(logits, torch.tensor([7, 0]), 8, [1.0, 3.0]), capture)
    assert sample.counts.tolist() == [5, 5]
    assert sample.next_logprob[0] == -np.inf
    assert (sample.ids[:, 5:] == 0).all()
    assert (sample.logprobs[:, 5:] == -np.inf).all()
    assert np.isnan(sample.next_logprob[-1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 50))
def test_bucket_entropy_is_a_lower_bound_and_exact_for_whole_rows(seed: int, k: int) -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(seed)) * 3
    sample = to_sample(reduce_logits(logits, torch.zeros(5, dtype=torch.long), k, [1.0]), LogitsCapture(k=k))
    p = torch.softmax(logits.double(), dim=1)
    true = -(p * p.log()).sum(dim=1).numpy()
    measured = bucket_entropy(sample)
    assert (measured <= true + 1e-5).all()
    if k == 50:
        assert np.abs(measured - true).max() < 1e-5
    head = np.sort(p.numpy(), axis=1)[:, ::-1][:, :k]
    rest = np.clip(1 - head.sum(axis=1), 1e-300, 1)
    expected = -(head * np.log(head)).sum(axis=1) - rest * np.log(rest)
    assert np.abs(measured - expected).max() < 1e-4
