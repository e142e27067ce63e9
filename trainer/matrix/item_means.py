"""A cell's value is the mean of its items' scores."""

import math
from collections.abc import Sequence

from schemas.matrix_cell import MatrixItem


def mean_of(items: Sequence[MatrixItem], measure: str) -> float:
    """The mean of a score over the items that have it, summed exactly: it does not depend on their order."""
    scores = [item.scores[measure] for item in items if measure in item.scores]
    return math.fsum(scores) / len(scores)
