"""Checkpoints that know whether they are whole, and the few numbers that exact resume needs.

``checkpoint-N`` is written by transformers (weights, optimiser, schedule, random state; of a sharded student by all
ranks, as ``torch.distributed.checkpoint`` folders that any number of ranks reads); ``data_state.json`` says where in
the data the run stands, ``distill_state.json`` all else. That one is added last, by rename: a folder without it was
killed while saving and is removed. Deleting goes the other way round.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.train_config import TargetForm, TrainConfig
from trainer.files import replace_text

STATE_FILE = "distill_state.json"
DATA_STATE_FILE = "data_state.json"


class DataState(BaseModel):
    """``data_state.json``: seed and digest name the order of the rows, ``rows_consumed`` says how far it was read.

    The rest follows from these, and saves work.
    """

    model_config = ConfigDict(extra="forbid")

    cache_digest: str = ""  # sha256 of the cache's manifest; of several caches, one over theirs
    seed: int = 0
    rows_consumed: int = 0  # rows of the plan; one step consumes one global batch
    tokens: int = 0  # in these rows
    skipped_samples: int = 0  # of these rows: they could not be read
    epochs: float | None = None  # the length of training that …
    planned_rows: int | None = None  # … takes so many rows
    places: list[tuple[int, int, int]] = []  # of each cache, first row, epoch and number of the group being read


class RunState(BaseModel):
    """``distill_state.json``: where the run stands. Mutable; the trainer updates it as it goes."""

    model_config = ConfigDict(extra="forbid")

    data: DataState = Field(default_factory=DataState, exclude=True)  # a file of its own
    settings: dict[str, Any]  # what must not change between checkpoint and resume, by dotted key
    target: TargetForm | None = None  # what TLA learns from: the configuration may leave it to the cache
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
    for key in ("cache", "local_copies", "on_corrupt", "validation_cache", "num_workers"):
        del tree["data"][key]
    tree["data"]["shares"] = [share.model_dump(exclude={"url"}) for share in config.data.shares]
    for key in ("attention", "trust_remote_code"):
        del tree["student"][key]
    settings = {
        f"{group}.{key}": value
        for group in ("data", "student", "losses", "optimizer")
        for key, value in tree[group].items()
    }
    settings |= {f"loop.{key}": tree["loop"][key] for key in ("bf16", "parallel")}
    settings["rows per step"] = global_batch
    return RunState(data=DataState(cache_digest=cache_digest, seed=config.loop.seed), settings=settings)


def checkpoint_folders(output: Path) -> list[Path]:
    """The checkpoint folders in ``output``, whole or not, newest first."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in output.glob("checkpoint-*")}
    folders = [(int(match[1]), path) for path, match in steps.items() if match]
    return [path for _, path in sorted(folders, reverse=True)]


def write_state(folder: Path, state: RunState) -> None:
    """Add the state of the data, and then the completeness mark, to a checkpoint folder."""
    replace_text(folder / DATA_STATE_FILE, state.data.model_dump_json() + "\n")
    replace_text(folder / STATE_FILE, state.model_dump_json(indent=1) + "\n")


def read_state(folder: Path) -> RunState:
    """The state of a whole checkpoint. Raises UserError when a file is missing or not valid."""
    path = folder / DATA_STATE_FILE
    if not path.is_file():
        raise UserError(f"{path}: missing; set loop.resume to false to start over (this deletes the checkpoints)")
    state = parse_json(RunState, (folder / STATE_FILE).read_bytes(), where=str(folder / STATE_FILE))
    state.data = parse_json(DataState, path.read_bytes(), where=str(path))
    return state


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
    """The newest whole checkpoint and its state, or (None, ``start``), also where ``resume`` is False.

    Raises UserError if the cache or a setting has changed since.
    """
    whole = [folder for folder in checkpoint_folders(output) if (folder / STATE_FILE).is_file()]
    if not whole or not resume:
        return None, start
    state = read_state(whole[0])
    advice = "set loop.resume to false to start over (this deletes the checkpoints), or change `output`"
    if state.data.cache_digest != start.data.cache_digest:
        raise UserError(
            f"{whole[0]}: was trained on the cache with manifest digest {state.data.cache_digest[:12]}…, "
            f"data.cache now has {start.data.cache_digest[:12]}…; {advice}"
        )
    before, now = ({"loop.seed": one.data.seed, **one.settings} for one in (state, start))
    for key, wanted in now.items():
        if before.get(key) != wanted:
            raise UserError(
                f"{whole[0]}: was trained with {key} = {json.dumps(before.get(key))}, "
                f"the configuration now says {json.dumps(wanted)}; {advice}"
            )
    return whole[0], state


def remove_unused(output: Path, resume: bool) -> None:
    """Remove incomplete checkpoints; all of them where ``resume`` is False."""
    for folder in checkpoint_folders(output):
        if not resume or not (folder / STATE_FILE).is_file():
            remove_checkpoint(folder)
