import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from support.reference_rows import WithGradient, dense_kl, kl, merged, sparse_rows, target_of, tla
from teacher_cache.output_head import OutputHead
from trainer.losses.targets import DenseTarget, draws_target
from trainer.losses.tla import tla_


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
    value = tla(student, sparse_rows(teacher, k, temperature, counts), temperature)
    pairs = merged(student.numpy(), teacher.numpy(), counts.tolist(), k, temperature)
    np.testing.assert_allclose(value.numpy(), [temperature**2 * kl(p, q) for p, q in pairs], rtol=1e-6, atol=1e-9)


@given(problems(), st.floats(0.1, 0.9))
@settings(deadline=None, max_examples=60)
def test_other_divergences_equal_their_definitions(problem, beta: float) -> None:
    student, teacher, counts, k, temperature = problem
    target = target_of(sparse_rows(teacher, k, temperature, counts), student.shape[1], temperature)
    assert target.rest_N is not None
    everything = target.listed_NK.sum(1) == student.shape[1]
    assume((everything | (target.rest_N > 1e-6)).all())  # 1 - (stored mass) has no more digits than that
    reverse, _ = tla_(student.clone(), target, temperature, "reverse")
    jsd, _ = tla_(student.clone(), target, temperature, "jsd", beta)
    pairs = merged(student.numpy(), teacher.numpy(), counts.tolist(), k, temperature)
    expected = [temperature**2 * kl(q, p) for p, q in pairs]
    np.testing.assert_allclose(reverse.numpy(), expected, rtol=1e-6, atol=1e-9)
    mixed = [beta * p + (1 - beta) * q for p, q in pairs]
    expected = [
        temperature**2 * (beta * kl(p, m) + (1 - beta) * kl(q, m)) for (p, q), m in zip(pairs, mixed, strict=True)
    ]
    np.testing.assert_allclose(jsd.numpy(), expected, rtol=1e-6, atol=1e-9)


@given(problems())
@settings(deadline=None, max_examples=50)
def test_is_a_lower_bound_of_the_dense_kl_and_not_negative(problem) -> None:
    student, teacher, counts, k, temperature = problem
    value = tla(student, sparse_rows(teacher, k, temperature, counts), temperature)
    assert (value <= dense_kl(student, teacher, temperature) + 1e-9).all()
    assert (value >= -1e-9).all()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_with_all_tokens_stored_it_is_the_dense_kl(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 7, 30, dtype=torch.float64) * 3
    value = tla(student, sparse_rows(teacher, 30, temperature), temperature)
    torch.testing.assert_close(value, dense_kl(student, teacher, temperature), rtol=1e-6, atol=1e-9)


@given(problems())
@settings(deadline=None, max_examples=50)
def test_renormalise_and_ignore_equal_their_definitions(problem) -> None:
    student, teacher, counts, k, temperature = problem
    rows = sparse_rows(teacher, k, temperature, counts)
    renormalised, ignored = (tla(student, rows, temperature, tail) for tail in ("renormalise", "ignore"))
    for n, (p, q) in enumerate(merged(student.numpy(), teacher.numpy(), counts.tolist(), k, temperature)):
        stored, seen = p[:-1], q[:-1]
        assert ignored[n].item() == pytest.approx(temperature**2 * np.sum(stored * np.log(stored / seen)), abs=1e-9)
        assert renormalised[n].item() == pytest.approx(temperature**2 * kl(stored / stored.sum(), seen), abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", ["bucket", "renormalise", "ignore"])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_gradient(temperature: float, tail, divergence) -> None:
    torch.manual_seed(0)
    student = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    rows = sparse_rows(torch.randn(4, 11, dtype=torch.float64), 5, temperature, torch.tensor([5, 1, 3, 2]))
    target = target_of(rows, 11, temperature, tail)
    assert torch.autograd.gradcheck(
        lambda z: WithGradient.apply(z, lambda logits: tla_(logits, target, temperature, divergence)), (student,)
    )


def dense_target(n: int, vocabulary: int, temperature: float, softcap: float | None = None) -> DenseTarget:
    hidden, weight = torch.randn(n, 6, dtype=torch.float64), torch.randn(vocabulary, 6, dtype=torch.float64)
    return DenseTarget(hidden, OutputHead(weight, scale=0.5, softcap=softcap), temperature)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_dense_target_is_the_dense_kl(temperature: float, softcap: float | None) -> None:
    torch.manual_seed(0)
    target = dense_target(5, 13, temperature, softcap)
    student = torch.randn(5, 13, dtype=torch.float64, requires_grad=True)
    teacher = target.hidden_ND @ target.head.weight_VD.T * 0.5
    teacher = teacher if softcap is None else softcap * torch.tanh(teacher / softcap)
    value, gradient = tla_(student.detach().clone(), target, temperature)
    expected = dense_kl(student, teacher, temperature)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), student)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("vocabulary", [9, 13, 17])
def test_dense_gradient_for_students_with_fewer_and_more_tokens(divergence, vocabulary: int) -> None:
    torch.manual_seed(0)
    target = dense_target(3, 13, 2.0)
    student = torch.randn(3, vocabulary, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z: WithGradient.apply(z, lambda logits: tla_(logits, target, 2.0, divergence)), (student,)
    )


@pytest.mark.parametrize("with_head", [False, True])
def test_gradient_of_draws(with_head: bool) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(4, 11, dtype=torch.float64)
    head = target_of(sparse_rows(teacher, 3, 2.0), 11, 2.0) if with_head else None
    target = draws_target(head, torch.randint(0, 11, (4, 6)), torch.ones(4, dtype=torch.float64), 11)
    student = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z: WithGradient.apply(z, lambda logits: tla_(logits, target, 2.0)), (student,)
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("k", [0, 4])
def test_loss_and_gradient_of_every_possible_draw_average_to_the_dense_ones(temperature: float, k: int) -> None:
    """One draw a row: weighting each possible one by its probability gives the expectation exactly."""
    torch.manual_seed(0)
    v = 12
    teacher, student = torch.randn(2, 1, v, dtype=torch.float64) * 2
    p = (teacher / temperature).softmax(-1)
    entropy = torch.special.entr(p).sum(-1)
    rows = sparse_rows(teacher, max(k, 1), temperature)
    head = target_of(rows, v, temperature) if k else None
    drawn_from = p[0].clone()
    if k:
        drawn_from[rows[0][0]] = 0
    drawn_from /= drawn_from.sum()
    value, gradient = torch.zeros(1, dtype=torch.float64), torch.zeros(1, v, dtype=torch.float64)
    for token, probability in enumerate(drawn_from.tolist()):
        target = draws_target(head, torch.tensor([[token]]), entropy, v)
        one_value, one_gradient = tla_(student.clone(), target, temperature)
        value += probability * one_value
        gradient += probability * one_gradient
    leaf = student.clone().requires_grad_()
    expected = dense_kl(leaf, teacher, temperature)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), leaf)[0], rtol=1e-9, atol=1e-12)


def test_zero_when_the_student_is_the_teacher() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(6, 50) * 4
    value, gradient = tla_(teacher.clone(), target_of(sparse_rows(teacher, 9, 2.0), 50, 2.0), 2.0)
    assert value.abs().max() < 1e-5
    assert gradient.abs().max() < 1e-5


def test_extreme_rows_have_finite_values_and_gradients() -> None:
    v = 20
    student = torch.zeros(6, v)
    student[0, 3] = 200.0  # the student is certain: the bucket underflows
    student[1, 4] = -200.0
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
    for divergence in ("forward", "reverse", "jsd"):
        value, gradient = tla_(student.clone(), target_of((ids, logprobs, zero), v), 1.0, divergence)
        assert torch.isfinite(value).all(), divergence
        assert torch.isfinite(gradient).all(), divergence
        assert value[3:].abs().max() < 1e-5, divergence
        if divergence == "forward":
            assert gradient[0, 3] > 0.1  # away from certainty
            assert value[2].item() == pytest.approx(math.log(20 / 3), abs=1e-5)  # renormalised to three times 1/3


def test_confident_student_keeps_the_buckets_digits_in_float32() -> None:
    student = torch.zeros(1, 1000)
    student[0, 0] = 25.0  # all other tokens: 999 e^-25 = 1.4e-8, lost in 1 - (stored mass)
    teacher = torch.zeros(1, 1000)
    teacher[0, 0] = 10.0
    rows = sparse_rows(teacher.double(), 1, 1.0)
    exact = tla(student.double(), rows)
    torch.testing.assert_close(tla(student, rows).double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("first", [2, 12])
def test_tokens_the_student_lacks_join_the_bucket(first: int) -> None:
    torch.manual_seed(0)
    student = torch.randn(3, 10, dtype=torch.float64)
    logprobs = torch.tensor([[0.5, 0.3, 0.1]] * 3, dtype=torch.float64).log()
    if first == 12:
        logprobs = logprobs.roll(1, dims=1)
    ids = torch.tensor([[2, 12, 4]] * 3).roll(1 if first == 12 else 0, dims=1)
    partition = torch.zeros(3, dtype=torch.float64)
    with_unknown = tla_(student.clone(), target_of((ids, logprobs, partition), 10), 1.0)
    logprobs = logprobs.masked_fill(ids == 12, -torch.inf)
    without = tla_(student.clone(), target_of((ids.masked_fill(ids == 12, 0), logprobs, partition), 10), 1.0)
    for one, other in zip(with_unknown, without, strict=True):
        torch.testing.assert_close(one, other)
