"""How much tests with many repetitions repeat: fewer in ``make test`` than in ``make test-full``."""

import os

FULL = bool(os.environ.get("TEST_FULL"))


def amount(usual: int, full: int) -> int:
    return full if FULL else usual
