"""Losses over classes of tokens, against sums token by token in float64."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.train_config import Divergence
from teacher_cache.output_head import OutputHead
from trainer.losses.class_loss import in_classes
from trainer.losses.loss import LossOfChunk, Pair
from trainer.losses.targets import DenseTarget, ListedTarget, top_k_target
from trainer.losses.teacher_rows import TeacherRows
from trainer.losses.tla import tla_
from trainer.losses.token_classes import TokenClasses
from trainer.losses.token_map import TokenMap

BETA = 0.3


def rows_of(
    ids_NK: torch.Tensor,
    weights_NK: torch.Tensor,
    next_ids_N: list[int],
    classes_N: list[int] | None,
    maps: tuple[TokenClasses, ...] = (),
    temperature: float = 1.0,
) -> TeacherRows:
    n = len(ids_NK)
    return TeacherRows(
        ids_NK=ids_NK,
        logprobs_NK=temperature * weights_NK.log(),
        log_partition_NT=torch.zeros(n, 1, dtype=torch.float64),
        next_ids_N=torch.tensor(next_ids_N),
        next_logprob_N=torch.full((n,), torch.nan),
        classes_N=None if classes_N is None else torch.tensor(classes_N, dtype=torch.int16),
        token_classes=maps,
    )


def target_of(rows: TeacherRows, vocabulary: int, temperature: float) -> ListedTarget:
    return top_k_target(rows.ids_NK, rows.logprobs_NK, rows.log_partition_NT[:, 0], temperature, vocabulary)


def loss_of(rows: TeacherRows, vocabulary: int, temperature: float, divergence: Divergence = "forward") -> LossOfChunk:
    target = target_of(rows, vocabulary, temperature)

    def of_chunk(logits_nV: torch.Tensor, chunk: slice) -> Pair:
        return tla_(logits_nV, target.rows(chunk), temperature, divergence, BETA)

    return in_classes(of_chunk, rows, temperature)


def defined(
    logits_V: torch.Tensor,
    rows: TeacherRows,
    n: int,
    of_V: list[int] | None,
    temperature: float,
    divergence: Divergence,
) -> torch.Tensor:
    """The loss of row n by the definition, differentiable: sums over classes, and a conditional probability."""
    vocabulary, own = len(logits_V), slice(n, n + 1)
    target = target_of(rows, vocabulary, temperature).rows(own)
    of_V = list(range(vocabulary)) if of_V is None else of_V
    q_V = (logits_V / temperature).softmax(0)
    p = {c: 0.0 for c in set(of_V)}
    listed = {int(s) for s, present in zip(target.ids_NK[0], target.listed_NK[0], strict=True) if present}
    for s, w in zip(target.ids_NK[0].tolist(), target.weights_NK[0].tolist(), strict=True):
        p[s] += w
    q = {c: sum(q_V[s] for s in range(vocabulary) if of_V[s] == c) for c in p}
    assert target.rest_N is not None
    outcomes = [(p[c], q[c]) for c in sorted(listed)]
    if len(listed) < len(p):
        outcomes.append((float(target.rest_N[0]), sum(q[c] for c in p if c not in listed)))
    if divergence == "forward":
        total = sum(a * (np.log(a) - torch.log(b)) for a, b in outcomes if a > 0)
    elif divergence == "reverse":
        least = torch.finfo(torch.float64).tiny
        total = sum(b * (torch.log(b) - np.log(max(a, least))) for a, b in outcomes)
    else:
        mixed = [BETA * a + (1 - BETA) * b for a, b in outcomes]
        total = sum(
            BETA * a * (np.log(max(a, 1e-300)) - torch.log(m)) + (1 - BETA) * b * (torch.log(b) - torch.log(m))
            for (a, b), m in zip(outcomes, mixed, strict=True)
        )
    label = int(rows.next_ids_N[n])
    own_class = [s for s in range(vocabulary) if of_V[s] == of_V[label]]
    within = -logits_V[own_class].log_softmax(0)[own_class.index(label)]
    return temperature**2 * total + within


@given(
    of_V=st.lists(st.integers(0, 8), min_size=9, max_size=9),
    temperature=st.sampled_from([1.0, 2.5, 0.5]),
    divergence=st.sampled_from(["forward", "reverse", "jsd"]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_loss_and_gradient_are_those_of_the_definition(
    of_V: list[int], temperature: float, divergence: Divergence, seed: int
) -> None:
    """Rows in the classes of two caches, in none, and without a teacher, in one chunk."""
    common_V = np.array([c if of_V[c] == c else s for s, c in enumerate(of_V)])  # names must be of their own class
    common_V = common_V[common_V]
    rng = np.random.default_rng(seed)
    maps = TokenClasses.of(common_V, 10), TokenClasses.of(common_V[:5] * 0, 10)
    assume(len(set(common_V.tolist())) >= 4)  # with row 9 of the head more than are listed, as there always are
    numbers = [1, 2, 0, 1]
    of = [maps[0].of_V.tolist(), maps[1].of_V.tolist(), None, maps[0].of_V.tolist()]
    ids = [rng.permutation(sorted(set(range(10) if c is None else c)))[:4] for c in of]
    ids_NK, weights_NK = torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.float64)
    for n, own in enumerate(ids[:3]):  # the last has no teacher
        ids_NK[n, : len(own)] = torch.from_numpy(own)
        weights_NK[n, : len(own)] = torch.from_numpy(rng.dirichlet(np.ones(len(own) + 1))[:-1])
    rows = rows_of(ids_NK, weights_NK, rng.integers(0, 10, 4).tolist(), numbers, maps, temperature)
    logits_NV = torch.from_numpy(rng.normal(0, 2, (4, 10))).requires_grad_()
    wanted_N = [
        defined(logits_NV[n], rows, n, of[n], temperature, divergence)
        if of[n] is not None
        else tla_(logits_NV[n : n + 1].detach().clone(), target_of(rows, 10, temperature).rows(slice(n, n + 1)),
                  temperature, divergence, BETA)[0][0]
        for n in range(3)
    ]  # fmt: skip
    loss_N, gradient_NV = loss_of(rows, 10, temperature, divergence)(logits_NV.detach().clone(), slice(0, 4))
    torch.testing.assert_close(loss_N[:3], torch.stack([each.detach() for each in wanted_N]), rtol=1e-9, atol=1e-9)
    (wanted_NV,) = torch.autograd.grad(wanted_N[0] + wanted_N[1], logits_NV)
    torch.testing.assert_close(gradient_NV[:2], wanted_NV[:2], rtol=1e-7, atol=1e-9)
    plain = rows_of(ids_NK, weights_NK, rows.next_ids_N.tolist(), None, temperature=temperature)
    as_ever_N, as_ever_NV = loss_of(plain, 10, temperature, divergence)(logits_NV.detach().clone(), slice(0, 4))
    torch.testing.assert_close((loss_N[2], gradient_NV[2]), (as_ever_N[2], as_ever_NV[2]))
    if divergence == "forward":
        assert loss_N[3] == 0
        assert not gradient_NV[3].any()


def test_over_the_teachers_texts_the_mean_gradient_is_that_of_all_tokens() -> None:
    """The row knows classes only; which token of a class comes next is drawn."""
    rng = np.random.default_rng(0)
    p_V = rng.dirichlet(np.ones(7))
    common_V = np.array([0, 0, 0, 3, 3, 5, 6])
    classes = TokenClasses.of(common_V, 7)
    names = sorted(set(common_V.tolist()))
    weights_K = torch.tensor([p_V[common_V == c].sum() for c in names])
    logits_V = torch.from_numpy(rng.normal(0, 2, 7))
    mean_V = torch.zeros(7, dtype=torch.float64)
    for s in range(7):
        rows = rows_of(torch.tensor([names]), weights_K[None], [s], [1], (classes,))
        _, gradient_NV = loss_of(rows, 7, 1.0)(logits_V.clone()[None], slice(0, 1))
        mean_V += p_V[s] * gradient_NV[0]
    torch.testing.assert_close(mean_V, logits_V.softmax(0) - torch.from_numpy(p_V), rtol=1e-9, atol=1e-12)


def test_a_chunk_in_the_classes_of_one_cache_is_the_same_as_its_rows() -> None:
    classes = TokenClasses.of(np.array([0, 0, 2, 2, 2]), 5)
    ids_NK, weights_NK = torch.tensor([[0, 2]] * 3), torch.tensor([[0.5, 0.25]] * 3, dtype=torch.float64)
    rows = rows_of(ids_NK, weights_NK, [1, 2, 4], [1, 1, 1], (classes,))
    logits_NV = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = loss_of(rows, 5, 1.0)
    loss_N, gradient_NV = loss(logits_NV.clone(), slice(0, 3))
    for n in range(3):
        own_N, own_NV = loss(logits_NV[n : n + 1].clone(), slice(n, n + 1))
        torch.testing.assert_close((own_N[0], own_NV[0]), (loss_N[n], gradient_NV[n]))


def test_float32_logits_of_improbable_classes_stay_finite() -> None:
    classes = TokenClasses.of(np.array([0, 0, 2]), 3)
    rows = rows_of(torch.tensor([[2]]), torch.ones(1, 1), [2], [1], (classes,))
    loss_N, gradient_NV = loss_of(rows, 3, 1.0)(torch.tensor([[200.0, 190.0, -50.0]]), slice(0, 1))
    assert torch.isfinite(loss_N).all()
    assert gradient_NV[0].tolist() == pytest.approx([1, 0, -1], abs=1e-4)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_whole_distributions_are_summed_over_classes_on_both_sides(divergence: Divergence) -> None:
    """Teacher tokens 0 to 5; the last has no student token, and student token 6 no teacher token."""
    generator = torch.Generator().manual_seed(1)
    hidden_ND, weight_UD = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (3, 6))
    logits_NV = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    common_V, to_U = np.array([0, 0, 2, 2, 4, 0, 6]), np.array([0, 0, 2, 4, 2, -1])
    classes = TokenClasses.of(common_V, 7)
    target = DenseTarget(hidden_ND, OutputHead(weight_UD), 1.0, TokenMap.of(to_U, 6, 7))
    rows = rows_of(torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1), [5, 3, 4], [1, 1, 1], (classes,))
    p_NU, q_NV = target.log_probs().exp(), logits_NV.softmax(1)
    p_NC = torch.stack([p_NU[:, to_U == c].sum(1) for c in (0, 2, 4, -1)], dim=1)
    q_NC = torch.stack([q_NV[:, common_V == c].sum(1) for c in (0, 2, 4, 6)], dim=1)
    mixed_NC = BETA * p_NC + (1 - BETA) * q_NC
    wanted_N = {
        "forward": (p_NC * (p_NC / q_NC).log()).sum(1),
        "reverse": (q_NC * (q_NC / p_NC).log()).sum(1),
        "jsd": (BETA * p_NC * (p_NC / mixed_NC).log() + (1 - BETA) * q_NC * (q_NC / mixed_NC).log()).sum(1),
    }[divergence]
    within_N = torch.stack([(q_NC[n, c] / q_NV[n, s]).log() for n, (c, s) in enumerate([(0, 5), (1, 3), (2, 4)])])

    def over_classes(class_nV: torch.Tensor, chunk: slice) -> Pair:
        return tla_(class_nV, target.rows(chunk), 1.0, divergence, BETA)

    loss_N, gradient_NV = in_classes(over_classes, rows, 1.0)(logits_NV.clone(), slice(0, 3))
    torch.testing.assert_close(loss_N, wanted_N + within_N, rtol=1e-9, atol=1e-12)
    assert torch.isfinite(gradient_NV).all()
