"""ULD's and GOLD's loss against their definitions, written out in float64 over loops."""

import math

import numpy as np
import pytest
import torch

from benchmarks.support.published_losses import Matched, Sequence, gold, groups, uld


def example(rng: np.random.Generator, v: int, u: int) -> tuple[torch.Tensor, Sequence]:
    """Seven student tokens and five of the teacher over nine bytes; ends at 3, 6 and 9 are shared."""
    logits = torch.from_numpy(rng.normal(size=(7, v)) * 2).requires_grad_()
    teacher = torch.from_numpy(rng.normal(size=(5, u)) * 2).softmax(dim=1)
    sequence = Sequence(
        torch.from_numpy(rng.integers(0, v, 7)),
        rng.integers(0, v, 7),
        np.array([1, 3, 4, 5, 6, 7, 9]),
        rng.integers(0, u, 5),
        np.array([2, 3, 6, 8, 9]),
        teacher,
    )
    return logits, sequence


def distance(p: list[float], q: list[float]) -> float:
    p, q = sorted(p, reverse=True), sorted(q, reverse=True)
    size = max(len(p), len(q))
    return sum(abs(a - b) for a, b in zip(p + [0] * (size - len(p)), q + [0] * (size - len(q)), strict=True))


@pytest.mark.parametrize(("v", "u"), [(6, 11), (11, 6), (7, 7)])
def test_uld(v: int, u: int) -> None:
    logits, each = example(np.random.default_rng(v), v, u)
    p = logits.detach().softmax(dim=1)
    entropy = -sum(math.log(p[j, each.next_ids_J[j]]) for j in range(7)) / 7
    apart = sum(distance(p[i].tolist(), each.teacher_SU[i].tolist()) for i in range(5)) / 5
    assert uld(logits, each).item() == pytest.approx(entropy + 1.5 * apart, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: uld(x, each), logits, atol=1e-6)


def test_groups_end_where_both_sides_do() -> None:
    """Tokens after the last shared end are a group only if both sides have some."""
    assert groups(np.array([1, 3, 4, 6]), np.array([3, 5, 6])) == ([range(2), range(2, 4)], [range(1), range(1, 3)])
    assert groups(np.array([1, 2]), np.array([1, 3])) == ([range(1), range(1, 2)], [range(1), range(1, 2)])
    assert groups(np.array([1, 2]), np.array([1])) == ([range(1)], [range(1)])


def test_gold() -> None:
    v, u = 6, 9
    logits, each = example(np.random.default_rng(3), v, u)
    pairs = [(0, 2), (4, 0), (5, 5)]  # teacher's id, student's id
    matched = Matched(
        torch.tensor([t for t, _ in pairs]),
        torch.tensor([s for _, s in pairs]),
        torch.tensor([1, 2, 3, 6, 7, 8]),
        torch.tensor([1, 3, 4]),
    )
    p = logits.detach().softmax(dim=1).tolist()
    q = each.teacher_SU.tolist()
    total = 0.0
    for ours, theirs in [((0, 1), (0, 1)), ((2, 3, 4), (2,)), ((5, 6), (3, 4))]:
        student = [value * math.prod(p[j][each.ids_J[j]] for j in ours[1:]) for value in p[ours[0]]]
        teacher = [value * math.prod(q[k][each.ids_S[k]] for k in theirs[1:]) for value in q[theirs[0]]]
        total += sum(teacher[t] * math.log(teacher[t] / student[s]) for t, s in pairs)
        total += distance([student[s] for s in (1, 3, 4)], [teacher[t] for t in (1, 2, 3, 6, 7, 8)])
    assert gold(logits, each, matched).item() == pytest.approx(total / 3, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: gold(x, each, matched), logits, atol=1e-6)
