"""Distributions over all tokens of a teacher as distributions over those of a student with another tokenizer.

A teacher token stands for the longest student token that its bytes begin with (``teacher_cache.retarget``). So the mass
of a student token is a sum over teacher tokens, exact where the student's token begins and ends inside one token of the
teacher, or with it.

Shape letters: N rows, U teacher tokens, V student tokens, I student tokens that some teacher token stands for.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch


@dataclass(frozen=True)
class TokenMap:
    """Which student token each row of the teacher's head stands for."""

    ids_I: torch.Tensor  # int64, rising
    place_U: torch.Tensor  # int64; where in ``ids_I``; I: for no token of the student

    @classmethod
    def of(cls, whole_U: np.ndarray, teacher_rows: int, student_rows: int) -> Self:
        """Of the student token of each whole teacher token, integer [U]; -1: none (``Vocabularies.whole_V``).

        teacher_rows, student_rows: of the heads' weights. They may have more rows than there are tokens, or fewer;
        teacher tokens of which one side has no row stand for none.
        """
        to_U = np.full(teacher_rows, -1, np.int64)
        known = min(teacher_rows, len(whole_U))
        to_U[:known] = whole_U[:known]
        stands_U = (to_U >= 0) & (to_U < student_rows)
        ids_I, place = np.unique(to_U[stands_U], return_inverse=True)
        place_U = np.full(teacher_rows, len(ids_I), np.int64)
        place_U[stands_U] = place
        return cls(torch.from_numpy(ids_I), torch.from_numpy(place_U))

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(self.ids_I.to(device), self.place_U.to(device))

    def sums(self, p_NU: torch.Tensor) -> torch.Tensor:
        """The mass of each token of ``ids_I``, and in the last column of all others together, [N, I + 1]."""
        sums_NS = p_NU.new_zeros(len(p_NU), len(self.ids_I) + 1)
        return sums_NS.scatter_add_(1, self.place_U.expand_as(p_NU), p_NU)
