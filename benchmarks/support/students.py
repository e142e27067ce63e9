"""The demo's data and students, for whoever trains on them: corpora, caches and evaluations through installed commands.

A folder holds one experiment: ``corpus`` and ``cache`` to train on, ``held-out/corpus`` and ``held-out/cache`` with
whole files and whole problems that no student is trained on.
"""

from pathlib import Path
from typing import Any

from benchmarks.support.corpus import hold_out, human_eval_chats, standard_library, write_chats, write_code
from benchmarks.support.installed import run_installed

CACHE_CONFIG, TRAIN_CONFIG = Path("configs/demo-cache.yaml"), Path("configs/demo-train.yaml")
MODULE_CHARACTERS = 900
TRAINING_CHATS = 64
TOP_64 = ("capture.logits.k=64", "capture.draws=null")  # for caches whose entries are the measure, or the target
HARD_LABELS = ("losses.tla.weight={start: 0, end: 0}", "losses.cross_entropy.weight={start: 1, end: 1}")


def write_corpora(
    folder: Path,
    modules: int | None = None,
    chats: int = TRAINING_CHATS,
    held_out_modules: int | None = None,
    held_out_chats: int | None = None,
) -> None:
    """Training and held-out texts, the first so many of each or all; no file and no problem is on both sides."""
    all_modules, all_chats = hold_out(standard_library()), hold_out(human_eval_chats())
    limits = ((folder, modules, chats), (folder / "held-out", held_out_modules, held_out_chats))
    for side, (place, n_modules, n_chats) in enumerate(limits):
        write_code(place / "corpus/code", all_modules[side][:n_modules], MODULE_CHARACTERS)
        write_chats(place / "corpus/chats.jsonl", all_chats[side][:n_chats])


def cache_settings(folder: Path) -> list[str]:
    """What the demo's cache configuration needs to read ``folder/corpus`` and write ``folder/cache``."""
    return [
        f"output.path={folder / 'cache'}",
        f"corpus.sources.0.path={folder / 'corpus/code'}",
        f"corpus.sources.1.path={folder / 'corpus/chats.jsonl'}",
    ]


def options(changes: list[str] | tuple[str, ...]) -> list[str]:
    """``--set`` options."""
    return [word for change in changes for word in ("--set", change)]


def evaluate(model: Path, cache: Path) -> dict[str, Any]:
    """``train-student evaluate`` of a model folder."""
    return run_installed("train-student", "evaluate", model, cache, "--json").json
