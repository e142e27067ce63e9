"""Distributions over all tokens of a teacher as distributions over those of a student with another tokenizer.

A teacher token stands for the longest student token that its bytes begin with (``teacher_cache.retarget``). So the mass
of a student token is a sum over teacher tokens, exact where the student's token begins and ends inside one token of the
teacher, or with it.

Shape letters: N rows, U teacher tokens, V student tokens.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch


@dataclass(frozen=True)
class TokenMap:
    """Which student token each row of the teacher's head stands for, and which student tokens are so named."""

    to_U: torch.Tensor  # int64; V: no token of the student
    named_V: torch.Tensor  # bool
    names_all: bool

    @classmethod
    def of(cls, whole_U: np.ndarray, teacher_rows: int, student_rows: int) -> Self:
        """Of the student token of each whole teacher token, integer [U]; -1: none (``Vocabularies.whole_V``).

        teacher_rows, student_rows: of the heads' weights. They may have more rows than there are tokens, or fewer;
        teacher tokens of which one side has no row stand for none.
        """
        to_U = np.full(teacher_rows, student_rows, np.int64)
        known = min(teacher_rows, len(whole_U))
        to_U[:known] = whole_U[:known]
        to_U[(to_U < 0) | (to_U > student_rows)] = student_rows
        named_V = np.zeros(student_rows + 1, np.bool_)
        named_V[to_U] = True
        return cls(torch.from_numpy(to_U), torch.from_numpy(named_V[:-1]), bool(named_V[:-1].all()))

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(self.to_U.to(device), self.named_V.to(device), self.names_all)

    def sums(self, p_NU: torch.Tensor) -> torch.Tensor:
        """The mass of each student token, and in the last column that of none, [N, V + 1].

        On a GPU, masses of one student token are added in no fixed order: the last bits may differ between runs.
        """
        sums_NS = p_NU.new_zeros(len(p_NU), len(self.named_V) + 1)
        return sums_NS.scatter_add_(1, self.to_U.expand_as(p_NU), p_NU)
