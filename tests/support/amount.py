"""How much tests with many repetitions repeat: fewer in ``make test`` than in ``make test-full``."""

import os
from typing import TypeVar

FULL = bool(os.environ.get("TEST_FULL"))
Some = TypeVar("Some")


def amount(usual: Some, full: Some) -> Some:
    return full if FULL else usual
