"""ULD and GOLD's loss as their authors publish them, for one sequence; both need whole distributions.

- **ULD** (arXiv:2402.12030): cross-entropy plus λ = 1.5 times the L1 distance of the sorted probabilities of row i of
  the student and row i of the teacher, as if both had cut the text alike.
- **GOLD** (TRL's ``GOLDTrainer``, with the settings of its authors' runs: extended and hybrid ULD, β = 0, both weights
  1, ``uld_token_merge_strategy`` at its default, ``observed``): tokens are grouped between ends that both sides share.
  A group's row is that of its first token times the probabilities, at the other tokens' own rows, of these tokens; rows
  are not shifted, so each predicts what follows its token. On tokens with equal strings the loss is KL(teacher ‖
  student), on all others the L1 distance of sorted probabilities.

Shape letters: J student tokens and rows, S those of the teacher, V student vocabulary, U teacher vocabulary, G groups,
M tokens with equal strings.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

ULD_WEIGHT = 1.5  # λ, section 4 of the paper
THREADS = 2
LEAST = 1e-8  # GOLD's clamp of probabilities


class Sequence(NamedTuple):
    """One text as both sides read it, cut to the rows that have a next token."""

    next_ids_J: torch.Tensor  # int64; the student's next tokens
    ids_J: np.ndarray
    end_J: np.ndarray  # bytes of the text up to the end of each token
    ids_S: np.ndarray
    end_S: np.ndarray
    teacher_SU: torch.Tensor  # probabilities


class Matched(NamedTuple):
    """Tokens with equal strings on both sides, and all others."""

    teacher_M: torch.Tensor
    student_M: torch.Tensor
    teacher_only: torch.Tensor
    student_only: torch.Tensor

    @classmethod
    def of(cls, teacher: Any, student: Any, teacher_size: int, student_size: int) -> "Matched":
        """Of two tokenizers; ``sizes``: rows of the heads."""
        theirs, ours = teacher.get_vocab(), student.get_vocab()
        pairs = np.array(sorted((theirs[token], ours[token]) for token in theirs.keys() & ours.keys())).reshape(-1, 2)
        return cls(
            torch.from_numpy(pairs[:, 0].copy()),
            torch.from_numpy(pairs[:, 1].copy()),
            torch.from_numpy(np.setdiff1d(np.arange(teacher_size), pairs[:, 0])),
            torch.from_numpy(np.setdiff1d(np.arange(student_size), pairs[:, 1])),
        )


def cross_entropy(logits_JV: torch.Tensor, each: Sequence) -> torch.Tensor:
    """Mean over the rows, nats."""
    return torch.nn.functional.cross_entropy(logits_JV, each.next_ids_J)


def uld(logits_JV: torch.Tensor, each: Sequence) -> torch.Tensor:
    """Cross-entropy + λ · mean over rows i < min(J, S) of Σ |sorted student - sorted teacher|."""
    rows = min(len(logits_JV), len(each.teacher_SU))
    distance = sorted_distance(logits_JV[:rows].softmax(dim=1), each.teacher_SU[:rows]) / rows
    return cross_entropy(logits_JV, each) + ULD_WEIGHT * distance


def gold(logits_JV: torch.Tensor, each: Sequence, matched: Matched) -> torch.Tensor:
    """Mean over groups of KL on tokens with equal strings and of the L1 distance of sorted probabilities on others."""
    groups_J, groups_S = groups(each.end_J, each.end_S)
    student_GV = merged(logits_JV.softmax(dim=1), each.ids_J, groups_J)
    teacher_GU = merged(each.teacher_SU, each.ids_S, groups_S)
    p_GM = teacher_GU[:, matched.teacher_M].clamp(min=LEAST)
    q_GM = student_GV[:, matched.student_M].clamp(min=LEAST)
    kl = (p_GM * (p_GM.log() - q_GM.log())).sum()
    others = sorted_distance(student_GV[:, matched.student_only], teacher_GU[:, matched.teacher_only])
    return (kl + others) / len(groups_J)


def groups(end_J: np.ndarray, end_S: np.ndarray) -> tuple[list[range], list[range]]:
    """Tokens between shared ends, of both sides; what remains after the last one is a group if both sides have some."""
    _, at_J, at_S = np.intersect1d(end_J, end_S, return_indices=True)
    borders = [(0, 0), *zip((at_J + 1).tolist(), (at_S + 1).tolist(), strict=True)]
    if borders[-1][0] < len(end_J) and borders[-1][1] < len(end_S):
        borders.append((len(end_J), len(end_S)))
    pairs = list(itertools.pairwise(borders))
    return [range(a, b) for (a, _), (b, _) in pairs], [range(a, b) for (_, a), (_, b) in pairs]


def merged(probabilities_NV: torch.Tensor, ids_N: np.ndarray, groups_G: list[range]) -> torch.Tensor:
    """Each group's first row times the probabilities of its other tokens, read at their own rows; [G, V]."""
    own_N = probabilities_NV.gather(1, torch.from_numpy(ids_N.astype(np.int64))[:, None]).squeeze(1).clamp(min=LEAST)
    first_G = torch.tensor([group.start for group in groups_G])
    others_G = torch.stack([own_N[group.start + 1 : group.stop].prod() for group in groups_G])
    return probabilities_NV[first_G] * others_G[:, None]


def sorted_distance(student_NV: torch.Tensor, teacher_NU: torch.Tensor) -> torch.Tensor:
    """Sum over rows of Σ |sorted student - sorted teacher|, the shorter one padded with zeros; a scalar."""
    found: torch.Tensor = _SortedDistance.apply(student_NV, teacher_NU)
    return found


class _SortedDistance(torch.autograd.Function):
    """NumPy sorts rows several times faster than torch does on processors with AVX-512; threads share the rows."""

    @staticmethod
    def forward(context: Any, student_NV: torch.Tensor, teacher_NU: torch.Tensor) -> torch.Tensor:
        parts = [np.array_split(each.detach().numpy(), THREADS) for each in (student_NV, teacher_NU)]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(_distance_and_signs, *parts))
        context.save_for_backward(torch.from_numpy(np.concatenate([signs for _, signs in found])))
        return student_NV.new_tensor(sum(distance for distance, _ in found))

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient_NV,) = context.saved_tensors
        return gradients[0] * gradient_NV, None


def _distance_and_signs(student_NV: np.ndarray, teacher_NU: np.ndarray) -> tuple[float, np.ndarray]:
    """The sum over rows, and the sign of each student value's difference, [N, V]."""
    negative_NV = -student_NV
    order_NV = np.argsort(negative_NV, axis=1)
    teacher_NC = -np.sort(-_largest(teacher_NU, student_NV.shape[1]), axis=1)
    difference_NV = -np.take_along_axis(negative_NV, order_NV, axis=1)
    difference_NV[:, : teacher_NC.shape[1]] -= teacher_NC
    signs_NV = np.empty_like(negative_NV)
    np.put_along_axis(signs_NV, order_NV, np.sign(difference_NV), axis=1)
    left_out = teacher_NU.sum(axis=1) - teacher_NC.sum(axis=1)  # compared with zeros
    return float(np.abs(difference_NV).sum(dtype=np.float64) + left_out.clip(min=0).sum(dtype=np.float64)), signs_NV


def _largest(values_NU: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` largest values of each row, in any order."""
    size = values_NU.shape[1]
    return values_NU if size <= count else np.partition(values_NU, size - count, axis=1)[:, size - count :]
