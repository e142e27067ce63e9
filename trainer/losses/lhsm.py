"""Layer-wise hidden state matching (LHSM): a learned linear map between the widths of two models, then an MSE.

Regression of a student's layer on a teacher's through a learned map is FitNets' (Romero et al. 2015, arXiv:1412.6550);
one such pair for each of a few layers is TinyBERT's (Jiao et al. 2020, arXiv:1909.10351).

Both sides are normalised *after* the map. An MSE between a mapped and a plain vector is lowered by shrinking both,
which teaches nothing. Between normalised vectors it is 2 (1 - r) with r the correlation over features: only the
direction counts. 0 is equality, about 2 two independent vectors, 4 opposite ones.

Trade-off: the epsilon that keeps the gradient finite at a zero vector also bounds the promise. It holds while the
standard deviation over features is well above sqrt(EPSILON) = 1e-3; a side that is exactly zero gives 1. No gradient
leads there (the gradient of a scale-free function is orthogonal to its argument), weight decay might: see ``norms``.

Shape letters: N rows (token positions), E student width, D teacher width.
"""

import math
from typing import Literal

import torch

Direction = Literal["teacher_to_student", "student_to_teacher"]
EPSILON = 1e-6  # added to the variance


def layer_norm(hidden_ND: torch.Tensor) -> torch.Tensor:
    """Each row to mean 0 and variance 1, nothing learned; computed in float32 (float64 stays float64)."""
    hidden_ND = hidden_ND.to(torch.promote_types(hidden_ND.dtype, torch.float32))
    return torch.nn.functional.layer_norm(hidden_ND, hidden_ND.shape[-1:], eps=EPSILON)


def lhsm_per_row(
    student_NE: torch.Tensor, teacher_ND: torch.Tensor, map_weight: torch.Tensor, direction: Direction
) -> torch.Tensor:
    """Mean over features of the squared difference of the normalised hidden states, [N], in [0, 4].

    teacher_to_student: (LN(LN(teacher) Wᵀ) - LN(student))² with W [E, D], mean over E; the recipe's direction.
    student_to_teacher: (LN(LN(student) Wᵀ) - LN(teacher))² with W [D, E], mean over D; the student is asked for
    everything the teacher's vector holds, where the other direction lets the map choose what is easy to follow.
    Any float dtypes; computed in float32 (float64 students stay float64).
    """
    student_NE = layer_norm(student_NE)
    teacher_ND = layer_norm(teacher_ND.to(student_NE.dtype))
    map_weight = map_weight.to(student_NE.dtype)
    if direction == "teacher_to_student":
        difference = layer_norm(teacher_ND @ map_weight.T) - student_NE
    else:
        difference = layer_norm(student_NE @ map_weight.T) - teacher_ND
    return difference.square().mean(dim=-1)


class HiddenMaps(torch.nn.Module):
    """One learned map without bias for each pair of layers; ``weights[pair]`` is float32 [out, in].

    A map starts as an isometry of the smaller space: the angles between tokens, which are what a hidden state says,
    survive it, and every direction gets a gradient of the same size. Between equal widths that is the identity, right
    at once for a student cut from the teacher and no worse than any other rotation for the rest; between different
    widths a random semi-orthogonal matrix, which prefers no channel as a truncated identity would.
    """

    def __init__(self, n_pairs: int, student_size: int, teacher_size: int, direction: Direction, seed: int = 0) -> None:
        """The same ``seed`` gives the same maps; the global random state is neither read nor changed."""
        super().__init__()
        self.direction = direction
        to_student = direction == "teacher_to_student"
        shape = (student_size, teacher_size) if to_student else (teacher_size, student_size)
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.nn.ParameterList()
        for _ in range(n_pairs):
            weight = torch.eye(*shape)
            if student_size != teacher_size:
                torch.nn.init.orthogonal_(weight, generator=generator)
            self.weights.append(torch.nn.Parameter(weight))

    def forward(self, pair: int, student_NE: torch.Tensor, teacher_ND: torch.Tensor) -> torch.Tensor:
        """``lhsm_per_row`` through the map of ``pair``, [N]."""
        return lhsm_per_row(student_NE, teacher_ND, self.weights[pair], self.direction)

    @torch.no_grad()
    def norms(self) -> torch.Tensor:
        """For logging: each map's Frobenius norm over sqrt(min(D, E)), [n_pairs]; 1 at the start, 1e-3 is too small."""
        return torch.stack([weight.norm() / math.sqrt(min(weight.shape)) for weight in self.weights])
