"""Fewer points for a curve: means over stretches of steps, with the lowest and the highest value of each.

A spike of one step moves a mean little, but always reaches the envelope.
"""

from typing import NamedTuple

import numpy as np

from trainer.run_report.run_reading import Series


class Envelope(NamedTuple):
    """A curve of at most so many points; all float64 [P] but steps, int64 [P]."""

    steps: np.ndarray  # the last of each stretch
    means: np.ndarray
    lows: np.ndarray
    highs: np.ndarray

    @property
    def is_exact(self) -> bool:
        """Whether every point is one value."""
        return bool(np.array_equal(self.lows, self.highs))


def envelope(series: Series, first: int, last: int, most: int) -> Envelope:
    """The curve of a series over steps ``first`` to ``last`` with at most ``most`` points."""
    steps, values = series.steps, series.values
    if len(steps) <= most:
        return Envelope(steps, values, values, values)
    stretch = np.minimum((steps - first) * most // max(last - first, 1), most - 1)
    starts = np.flatnonzero(np.diff(stretch, prepend=-1))
    counts = np.diff(starts, append=len(steps))
    return Envelope(
        steps[starts + counts - 1],
        np.add.reduceat(values, starts) / counts,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )
