"""The order in which a worker of a queue tries units, and how patiently; ``benchmarks.fleet_simulation`` has it too.

Pure functions. Workers know nothing of each other. Each has its own random order, so that they seldom try the same
unit. A unit that turns out to be done or held costs a request or a few; after many of those in a row a worker goes on
to smaller units, and only when there are none left a listing, which costs a request for each 1,000 files, says what was
passed over.
"""

import math
import random
from collections.abc import Sequence

CLASSES_PER_OCTAVE = 2  # sizes within a factor of √2 count as equal
MISSES = 24  # attempts in vain, in a row, before a worker leaves the rest of a class for later
LOOKS = 4  # held units that a worker without work looks at before it pauses
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0  # seconds, doubling, with ±50 % jitter


def claim_classes(sizes: Sequence[int], rng: random.Random) -> list[list[int]]:
    """Positions of the units by class of size, the largest first, those of a class at random.

    Larger ones first (Graham, 1969: "longest processing time"), so that none is begun when the others are all done.
    """
    classes: dict[int, list[int]] = {}
    for position, size in enumerate(sizes):
        classes.setdefault(round(CLASSES_PER_OCTAVE * math.log2(size)), []).append(position)
    for positions in classes.values():
        rng.shuffle(positions)
    return [classes[size] for size in sorted(classes, reverse=True)]


def pause(number: int, rng: random.Random) -> float:
    """Seconds before a worker without work looks again, for the ``number``-th time, from 0."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(number, 30)) * rng.uniform(0.5, 1.5)
