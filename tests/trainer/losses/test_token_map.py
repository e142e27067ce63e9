"""Whole distributions of a teacher for a student with another tokenizer, against sums in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.reference_rows import WithGradient
from teacher_cache.output_head import OutputHead
from teacher_cache.retarget.row_targets import StudentTokens, TeacherTokens, Vocabularies, row_targets
from teacher_cache.token_table import TokenTable
from trainer.losses.targets import DenseTarget, MixedTarget, top_k_target
from trainer.losses.tla import tla_
from trainer.losses.token_map import TokenMap

DIVERGENCES = ("forward", "reverse", "jsd")
BETA = 0.3


def summed(p_NU: np.ndarray, to_U: list[int], n_student: int) -> tuple[list[int], np.ndarray]:
    """The named student tokens, and the probabilities of each and of all others, token by token."""
    named = sorted({s for s in to_U if 0 <= s < n_student})
    found = np.zeros((len(p_NU), len(named) + 1))
    for u in range(p_NU.shape[1]):
        s = to_U[u] if u < len(to_U) else -1
        found[:, named.index(s) if s in named else len(named)] += p_NU[:, u]
    return named, found


@given(
    to_U=st.lists(st.integers(-1, 9), min_size=1, max_size=14),
    teacher_rows=st.integers(1, 16),
    student_rows=st.integers(6, 10),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=80)
def test_masses_are_sums_over_the_teachers_tokens(
    to_U: list[int], teacher_rows: int, student_rows: int, seed: int
) -> None:
    """Heads may have more rows than there are tokens, or fewer."""
    p_NU = np.random.default_rng(seed).dirichlet(np.full(teacher_rows, 0.3), 4)
    token_map = TokenMap.of(np.array(to_U, np.int32), teacher_rows, student_rows)
    named, wanted = summed(p_NU, to_U[:teacher_rows], student_rows)
    assert token_map.named_V.nonzero().squeeze(1).tolist() == named
    assert token_map.names_all is (len(named) == student_rows)
    found = token_map.sums(torch.from_numpy(p_NU)).numpy()
    np.testing.assert_allclose(found[:, [*named, -1]], wanted, atol=1e-12)
    assert found.shape == (4, student_rows + 1)
    assert token_map.sums(torch.from_numpy(p_NU).float()).sum(dim=1).numpy() == pytest.approx(1, abs=1e-6)


def dense(n: int, teacher_size: int, to_U: list[int], vocabulary: int, temperature: float = 1.0) -> DenseTarget:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(teacher_size, 5, dtype=torch.float64, generator=generator)
    return DenseTarget(hidden, OutputHead(weight), temperature, TokenMap.of(np.array(to_U), teacher_size, vocabulary))


def outcomes(logits_NV: torch.Tensor, target: DenseTarget, to_U: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of teacher and student of the named tokens and of all others together, by dense matrices."""
    p_NU, q_NV = target.log_probs().exp(), (logits_NV / target.temperature).softmax(-1)
    vocabulary = logits_NV.shape[1]
    named = sorted({s for s in to_U if s >= 0})
    of_teacher = torch.zeros(len(to_U), len(named) + 1, dtype=torch.float64)
    for u, s in enumerate(to_U):
        of_teacher[u, named.index(s) if s >= 0 else -1] = 1
    of_student = torch.zeros(vocabulary, len(named) + 1, dtype=torch.float64)
    for s in range(vocabulary):
        of_student[s, named.index(s) if s in named else -1] = 1
    return p_NU @ of_teacher, q_NV @ of_student


def divergences(p: torch.Tensor, q: torch.Tensor) -> dict[str, torch.Tensor]:
    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum(-1)

    m = BETA * p + (1 - BETA) * q
    return {"forward": kl(p, q), "reverse": kl(q, p), "jsd": BETA * kl(p, m) + (1 - BETA) * kl(q, m)}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("vocabulary", [4, 8, 20])  # fewer tokens than the teacher's 11, and more
def test_loss_and_gradient_are_those_of_the_summed_distribution(
    divergence, vocabulary: int, temperature: float
) -> None:
    to_U = [0, 2, 2, -1, 1, 0, 3, 2, -1, 1, 2] if vocabulary > 4 else [0, 2, 2, -1, 1, 0, 1, 2, -1, 1, 2]
    target = dense(6, 11, to_U, vocabulary, temperature)
    student = 2 * torch.randn(6, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = student.clone().requires_grad_()
    wanted = divergences(*outcomes(leaf, target, to_U))[divergence] * temperature**2
    value, gradient = tla_(student.clone(), target, temperature, divergence, BETA)
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), leaf)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_where_every_student_token_is_named_the_rest_belongs_to_none(divergence) -> None:
    to_U = [0, 2, 2, -1, 1, 0]
    target = dense(3, 6, to_U, 3)
    student = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaf = student.clone().requires_grad_()
    p, q = outcomes(leaf, target, to_U)
    p = p[:, :-1] / p[:, :-1].sum(dim=1, keepdim=True)
    wanted = divergences(p, q[:, :-1])[divergence]
    value, gradient = tla_(student.clone(), target, 1.0, divergence, BETA)
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), leaf)[0], rtol=1e-9, atol=1e-12)


def test_a_border_row_is_what_all_entries_of_the_teacher_give() -> None:
    """The compiled walk over bytes, with a row that stores every token of the teacher."""
    teacher = [b"", *(bytes([b]) for b in b"abcd e"), b"ab", b"abc", b" a", b"de", b"dea", b"bca", b"z"]
    student = [*(bytes([b]) for b in b"abcd e"), b"abcd", b" ab", b"de", b""]
    stop, n_teacher = len(student) - 1, len(teacher)
    vocabularies = Vocabularies.of(TokenTable.of(teacher), TokenTable.of(student), [0], stop)
    target = dense(4, n_teacher, vocabularies.whole_V.tolist(), len(student))
    (p_NV, rest_N), p_PU = target.mapped(), target.log_probs().exp().numpy()
    text = b"abdea"
    tokens = [(7, 0, 2), (10, 2, 4), (1, 4, 5), (0, 5, 5)]  # "ab", "de", "a", the stop token
    ids, start, end = np.array(tokens, np.int64).T.copy()
    rows = np.arange(4)
    found = row_targets(
        TeacherTokens(np.frombuffer(text, np.uint8), ids, start, end, rows,
                      np.tile(np.arange(n_teacher, dtype=np.int32), (4, 1)), p_PU, p_PU[rows, ids]),
        StudentTokens(np.array([0, 8, 0, stop]), start, np.array([1, 4, 5, 5]), np.array([False, False, False, True])),
        vocabularies,
    )  # fmt: skip
    assert found.whole_row_J.tolist() == [0, 1, 2, 3]
    for j in range(4):
        wanted = np.zeros(len(student))
        np.add.at(wanted, found.ids_JE[j], found.weights_JE[j])
        np.testing.assert_allclose(p_NV[j].numpy(), wanted, atol=1e-12)
        assert rest_N[j].item() == pytest.approx(found.rest_J[j], abs=1e-12)
        assert rest_N[j].item() > 1e-3  # "z" stands for no student token


def test_a_teacher_of_more_tokens_is_mapped_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    sums = TokenMap.sums
    monkeypatch.setattr(TokenMap, "sums", lambda own, p: seen.append(p.numel()) or sums(own, p))
    target = dense(9, 40, [u % 7 for u in range(40)], 10)
    found, rest = target.mapped()
    assert len(seen) > 1
    assert max(seen) <= 9 * 10
    torch.testing.assert_close(found.sum(dim=1) + rest, torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(target.rows(slice(8, 9)).mapped()[0], found[8:])
    assert target.rows(slice(0, 0)).mapped()[0].shape == (0, 10)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_certain_teachers_and_students_give_finite_values(divergence) -> None:
    weight = 400 * torch.eye(6)
    target = DenseTarget(torch.eye(6)[:3], OutputHead(weight), 1.0, TokenMap.of(np.array([0, 1, 1, 2, -1, 3]), 6, 8))
    student = torch.zeros(3, 8)
    student[0, 0], student[1, 5], student[2, 1] = 300.0, 300.0, -300.0
    value, gradient = tla_(student.clone(), target, 1.0, divergence)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert value[0].abs() < 1e-4  # both are certain of one token


def mixed(vocabulary: int = 12, temperature: float = 1.0):
    """Rows of three kinds, and the target of each row by itself."""
    kinds = torch.tensor([1, 0, 0, 2, 1, 0, 2, 2, 1, 0], dtype=torch.uint8)
    generator = torch.Generator().manual_seed(3)
    ids = torch.rand(10, vocabulary, generator=generator).argsort(dim=1)[:, :4]
    logprobs = torch.randn(10, 4, generator=generator, dtype=torch.float64).log_softmax(-1) - 0.2
    listed = top_k_target(ids, logprobs, torch.zeros(10, dtype=torch.float64), temperature, vocabulary)
    dense_one = dense(3, 9, [0, 1, 1, 2, -1, 5, 5, 0, 8], vocabulary, temperature)
    dense_two = dense(3, 9, [3, 1, -1, 2, -1, 4, 5, 9, 9], vocabulary, temperature)
    target = MixedTarget(kinds, (listed.rows((kinds == 0).nonzero().squeeze(1)), dense_one, dense_two))
    each, seen = [], [0, 0, 0]
    for n, kind in enumerate(kinds.tolist()):
        number = seen[kind]
        seen[kind] += 1
        each.append(target.targets[kind].rows(slice(number, number + 1)))
        if kind == 0:
            assert torch.equal(each[-1].ids_NK, listed.ids_NK[n : n + 1])
    return target, each


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("cuts", [(0, 10), (0, 1, 3, 10), (0, 4, 5, 10)])
def test_rows_of_several_kinds_are_each_taught_from_their_own_target(divergence, cuts: tuple[int, ...]) -> None:
    target, each = mixed()
    student = torch.randn(10, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for start, end in pairwise(cuts):
        chunk = slice(start, end)
        value, gradient = tla_(student[chunk].clone(), target.rows(chunk), 1.0, divergence, BETA)
        for n in range(start, end):
            own_value, own_gradient = tla_(student[n : n + 1].clone(), each[n], 1.0, divergence, BETA)
            torch.testing.assert_close(value[n - start], own_value[0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(gradient[n - start], own_gradient[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_of_mixed_rows(divergence) -> None:
    target, _ = mixed(temperature=2.0)
    student = torch.randn(10, 12, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(4))
    assert torch.autograd.gradcheck(
        lambda z: WithGradient.apply(z, lambda logits: tla_(logits, target, 2.0, divergence)), (student,)
    )
