"""Classes of student tokens with one common token (``teacher_cache.retarget.common_tokens``).

Shape letter: V student vocabulary.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch


@dataclass(frozen=True)
class TokenClasses:
    """The class of each row of the student's head: the id of its common token."""

    of_V: torch.Tensor  # int64
    unnamed_V: torch.Tensor  # bool; tokens that name no class

    @classmethod
    def of(cls, common_V: np.ndarray, student_rows: int) -> Self:
        """Of the common token of each student token, integer [V]; further rows of the head are classes of their own."""
        of_V = np.arange(student_rows)
        known = min(student_rows, len(common_V))
        of_V[:known] = common_V[:known]
        unnamed_V = np.ones(student_rows, np.bool_)
        unnamed_V[of_V] = False
        return cls(torch.from_numpy(of_V), torch.from_numpy(unnamed_V))

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(self.of_V.to(device), self.unnamed_V.to(device))
