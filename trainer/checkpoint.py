"""Checkpoints that know whether they are whole, and the few numbers that exact resume needs.

``checkpoint-N`` is written by transformers (weights, optimiser, schedule, random state); ``distill_state.json`` is
added last, by rename: a folder without it was killed while saving and is removed. Deleting goes the other way round.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.train_config import TrainConfig
from trainer.files import replace_text

STATE_FILE = "distill_state.json"


class RunState(BaseModel):
    """``distill_state.json``: where the run stands. Mutable; the trainer updates it as it goes."""

    model_config = ConfigDict(extra="forbid")

    cache_digest: str  # sha256 of the cache's manifest
    settings: dict[str, Any]  # what must not change between checkpoint and resume, by dotted key
    rows_consumed: int = 0  # rows of the plan; one step consumes one global batch
    global_step: int = 0
    window: dict[str, float] = {}  # sums of the loss terms since the last line of metrics …
    window_steps: int = 0  # … and the steps they are over
    best_kl: float | None = None  # lowest validation KL so far, nats per token
    best_step: int | None = None
    stale_validations: int = 0  # validations since then
    last_validation: dict[str, float] = {}
    best_validation: dict[str, float] = {}
    stopped_early: bool = False


def new_state(config: TrainConfig, cache_digest: str, global_batch: int) -> RunState:
    """The state at step 0. Length of training, saving and logging may change between runs; data and losses may not."""
    tree = config.model_dump(mode="json")
    for key in ("cache", "local_copies", "validation_cache", "num_workers"):
        del tree["data"][key]
    del tree["student"]["attention"]
    settings = {
        f"{group}.{key}": value
        for group in ("data", "student", "losses", "optimizer")
        for key, value in tree[group].items()
    }
    settings |= {"loop.seed": config.loop.seed, "loop.bf16": config.loop.bf16, "rows per step": global_batch}
    return RunState(cache_digest=cache_digest, settings=settings)


def checkpoint_folders(output: Path) -> list[Path]:
    """The checkpoint folders in ``output``, whole or not, newest first."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in output.glob("checkpoint-*")}
    folders = [(int(match[1]), path) for path, match in steps.items() if match]
    return [path for _, path in sorted(folders, reverse=True)]


def write_state(folder: Path, state: RunState) -> None:
    """Add the completeness mark to a checkpoint folder."""
    replace_text(folder / STATE_FILE, state.model_dump_json(indent=1) + "\n")


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, its mark first, so that a kill in between leaves an incomplete folder."""
    (folder / STATE_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def keep_newest(output: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the ``keep`` newest checkpoints; the best validated one stays as well."""
    for folder in checkpoint_folders(output)[keep:]:
        if folder.name != f"checkpoint-{best_step}":
            remove_checkpoint(folder)


def find_resume(output: Path, start: RunState, resume: bool) -> tuple[Path | None, RunState]:
    """The newest whole checkpoint and its state, or (None, ``start``); removes incomplete checkpoints.

    ``resume`` False removes all checkpoints. Raises UserError if the cache or a setting has changed since.
    """
    for folder in checkpoint_folders(output):
        if not resume or not (folder / STATE_FILE).is_file():
            remove_checkpoint(folder)
    folders = checkpoint_folders(output)
    if not folders:
        return None, start
    path = folders[0] / STATE_FILE
    state = parse_json(RunState, path.read_bytes(), where=str(path))
    advice = "set loop.resume to false to start over (this deletes the checkpoints), or change `output`"
    if state.cache_digest != start.cache_digest:
        raise UserError(
            f"{folders[0]}: was trained on the cache with manifest digest {state.cache_digest[:12]}…, "
            f"data.cache now has {start.cache_digest[:12]}…; {advice}"
        )
    for key, wanted in start.settings.items():
        if state.settings.get(key) != wanted:
            raise UserError(
                f"{folders[0]}: was trained with {key} = {json.dumps(state.settings.get(key))}, "
                f"the configuration now says {json.dumps(wanted)}; {advice}"
            )
    return folders[0], state
