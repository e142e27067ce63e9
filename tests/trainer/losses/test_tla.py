import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.losses.tla import log1mexp, tla_per_token


def sparse_rows(teacher_NV: torch.Tensor, k: int, temperature: float, counts_N: torch.Tensor | None = None):
    """What a cache would hold of ``teacher_NV``: ids, log-probabilities, and both log-partitions."""
    logprobs, ids = teacher_NV.log_softmax(-1).topk(k)
    if counts_N is not None:
        padding = torch.arange(k)[None] >= counts_N[:, None]
        ids, logprobs = ids.masked_fill(padding, 0), logprobs.masked_fill(padding, -torch.inf)
    return ids, logprobs, torch.logsumexp(teacher_NV, -1), torch.logsumexp(teacher_NV / temperature, -1)


def reference(student: np.ndarray, teacher: np.ndarray, counts: list[int], k: int, temperature: float) -> np.ndarray:
    """The definition, one row at a time in float64: merge the outcomes that are not stored, then the plain KL."""
    values = []
    for z, logits, count in zip(student, teacher, counts, strict=True):
        p = np.exp(logits / temperature - np.logaddexp.reduce(logits / temperature))
        q = np.exp(z / temperature - np.logaddexp.reduce(z / temperature))
        order = np.argsort(-logits, kind="stable")
        kept, rest = order[: min(k, count)], order[min(k, count) :]
        p, q = np.append(p[kept], p[rest].sum()), np.append(q[kept], q[rest].sum())
        present = p > 0
        values.append(temperature**2 * np.sum(p[present] * np.log(p[present] / q[present])))
    return np.array(values)


def dense_kl(student_NV: torch.Tensor, teacher_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    log_p, log_q = (teacher_NV / temperature).log_softmax(-1), (student_NV / temperature).log_softmax(-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


@st.composite
def problems(draw: st.DrawFn):
    n, v = draw(st.integers(1, 5)), draw(st.integers(2, 40))
    k = draw(st.integers(1, v))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0]))
    teacher = scale * torch.randn(n, v, generator=generator, dtype=torch.float64)
    student = scale * torch.randn(n, v, generator=generator, dtype=torch.float64)
    counts = torch.randint(1, k + 1, (n,), generator=generator)
    return student, teacher, counts, k, draw(st.sampled_from([0.5, 1.0, 2.0, 3.0]))


@given(problems())
@settings(deadline=None, max_examples=80)
def test_equals_the_definition_on_ragged_rows(problem) -> None:
    student, teacher, counts, k, temperature = problem
    value = tla_per_token(student, *sparse_rows(teacher, k, temperature, counts), temperature)
    expected = reference(student.numpy(), teacher.numpy(), counts.tolist(), k, temperature)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6, atol=1e-9)


@given(problems())
@settings(deadline=None, max_examples=50)
def test_is_a_lower_bound_of_the_dense_kl_and_not_negative(problem) -> None:
    student, teacher, counts, k, temperature = problem
    value = tla_per_token(student, *sparse_rows(teacher, k, temperature, counts), temperature)
    assert (value <= dense_kl(student, teacher, temperature) + 1e-9).all()
    assert (value >= -1e-9).all()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_with_all_tokens_stored_it_is_the_dense_kl(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 30, dtype=torch.float64) * 3
    value = tla_per_token(student, *sparse_rows(teacher, 30, temperature), temperature)
    torch.testing.assert_close(value, dense_kl(student, teacher, temperature), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient(temperature: float) -> None:
    torch.manual_seed(0)
    student = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    rows = sparse_rows(torch.randn(4, 11, dtype=torch.float64), 5, temperature, torch.tensor([5, 1, 3, 2]))
    assert torch.autograd.gradcheck(lambda z: tla_per_token(z, *rows, temperature), (student,))


def test_zero_when_the_student_is_the_teacher() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(6, 50) * 4
    student = teacher.clone().requires_grad_()
    value = tla_per_token(student, *sparse_rows(teacher, 9, 2.0), 2.0)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.abs().max() < 1e-5
    assert gradient.abs().max() < 1e-5


def test_extreme_rows_have_finite_values_and_gradients() -> None:
    v = 20
    student = torch.zeros(6, v)
    student[0, 3] = 200.0  # the student is certain: the bucket underflows
    student[1, 4] = -200.0
    student.requires_grad_()
    ids = torch.zeros(6, v, dtype=torch.int32)
    ids[:, :] = torch.arange(v)
    ids[0, 0], ids[0, 3] = 3, 0
    logprobs = torch.full((6, v), -torch.inf)
    logprobs[0, 0] = -0.5  # the teacher is not
    logprobs[1, :2] = math.log(0.5)  # stored mass exactly 1
    logprobs[2, :3] = math.log(0.4)  # stored mass 1.2 by quantisation
    logprobs[3] = -math.log(v)  # every token stored
    logprobs[4] = -math.log(v) - 0.03  # the same, mass below 1 by quantisation
    zero = torch.zeros(6)  # row 5: nothing stored
    value = tla_per_token(student, ids, logprobs, zero, zero)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert value[2].item() == pytest.approx(math.log(20 / 3), abs=1e-5)  # renormalised to three times 1/3
    assert value[3:].abs().max() < 1e-5


def test_confident_student_keeps_the_buckets_digits_in_float32() -> None:
    student = torch.zeros(1, 1000)
    student[0, 0] = 25.0  # all other tokens: 999 e^-25 = 1.4e-8, lost in 1 - (stored mass)
    teacher = torch.zeros(1, 1000)
    teacher[0, 0] = 10.0
    rows = sparse_rows(teacher.double(), 1, 1.0)
    exact = tla_per_token(student.double(), *rows)
    torch.testing.assert_close(tla_per_token(student, *rows).double(), exact, rtol=1e-4, atol=0)


def test_tokens_the_student_lacks_join_the_bucket() -> None:
    torch.manual_seed(0)
    student = torch.randn(3, 10, dtype=torch.float64)
    logprobs = torch.tensor([[0.5, 0.3, 0.1]] * 3, dtype=torch.float64).log()
    partition = torch.zeros(3, dtype=torch.float64)
    with_unknown = tla_per_token(student, torch.tensor([[2, 12, 4]] * 3), logprobs, partition, partition)
    logprobs[:, 1] = -torch.inf
    without = tla_per_token(student, torch.tensor([[2, 0, 4]] * 3), logprobs, partition, partition)
    torch.testing.assert_close(with_unknown, without)


def test_half_precision_logits_are_computed_in_float32() -> None:
    torch.manual_seed(0)
    student = (torch.randn(4, 33) * 5).bfloat16()
    rows = sparse_rows(torch.randn(4, 33), 6, 3.0)
    torch.testing.assert_close(tla_per_token(student, *rows, 3.0), tla_per_token(student.float(), *rows, 3.0))


@given(st.floats(-700, 0, exclude_max=True))
def test_log1mexp(x: float) -> None:
    value = log1mexp(torch.tensor(x, dtype=torch.float64)).item()
    expected = math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x))
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_log1mexp_of_certainty() -> None:
    assert log1mexp(torch.tensor([0.0, -torch.inf])).tolist() == [-math.inf, 0.0]
