"""The order in which a worker of a queue tries units, and how patiently; ``benchmarks.fleet_simulation`` has it too.

Pure functions. Workers know nothing of each other. Each has its own random order, so that they seldom try the same
unit; a unit that turns out to be done or held costs a request or a few, and after many of those in a row a listing says
which are left.
"""

import math
import random
from collections.abc import Sequence

CLASSES_PER_OCTAVE = 2  # sizes within a factor of √2 count as equal
MISSES = 24  # attempts in vain, in a row, before the next listing, if that has few names
NAMES_OF_A_UNIT, PAGE = 5, 1_000  # at most, of a unit's files and lease; names that a store lists with one request
LOOKS = 4  # held units that a worker without work looks at before it pauses
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0  # seconds, doubling, with ±50 % jitter


def claim_order(sizes: Sequence[int], rng: random.Random) -> list[int]:
    """Positions of the units, larger ones first, those of about one size at random.

    Larger ones first (Graham, 1969: "longest processing time"), so that none is begun when the others are all done.
    """
    return sorted(range(len(sizes)), key=lambda i: (-round(CLASSES_PER_OCTAVE * math.log2(sizes[i])), rng.random()))


def misses(n_units: int) -> int:
    """Attempts in vain, in a row, before the next listing of a place with so many units: what that has requests."""
    return max(MISSES, NAMES_OF_A_UNIT * n_units // PAGE)


def pause(number: int, rng: random.Random) -> float:
    """Seconds before a worker without work looks again, for the ``number``-th time, from 0."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(number, 30)) * rng.uniform(0.5, 1.5)
