"""Short questions with short human answers, on any machine: what a name of the standard library is, by its docstring.

Every ``HOLD_OUT_EVERY``-th module's names are held out as a whole.
"""

import importlib
import inspect
import random
from pathlib import Path
from typing import Any

from benchmarks.support.corpus import hold_out, standard_library

SHORTEST, LONGEST = 30, 160  # characters of an answer
LOUD = {"antigravity", "this", "idlelib", "turtle", "__future__", "__hello__"}  # modules that act when imported


def docstring_chats() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Chats of two messages to train on, and held out; the order is shuffled, and the same every time."""
    sides = hold_out(quiet_modules())
    training, held_out = ([chat for path in paths for chat in _chats_of(path.stem)] for paths in sides)
    random.Random(0).shuffle(training)
    random.Random(0).shuffle(held_out)
    return training, held_out


def quiet_modules() -> list[Path]:
    """The standard library's modules that do nothing but define names when they are imported."""
    return [path for path in standard_library() if path.stem not in LOUD]


def _chats_of(module: str) -> list[dict[str, Any]]:
    found: dict[str, str] = {}
    loaded = importlib.import_module(module)
    for name in sorted(vars(loaded)):
        value = getattr(loaded, name)
        if name.startswith("_") or not callable(value) or getattr(value, "__module__", None) != module:
            continue
        said = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
        if SHORTEST <= len(said) <= LONGEST and said.endswith(".") and "->" not in said:
            found.setdefault(said, f"{module}.{name}")
    return [
        {
            "messages": [
                {"role": "user", "content": f"In one sentence: what is `{name}` in Python?"},
                {"role": "assistant", "content": said},
            ]
        }
        for said, name in found.items()
    ]
