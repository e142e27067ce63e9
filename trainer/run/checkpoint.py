"""Checkpoints with a completeness mark, and the state for exact resume.

transformers writes ``checkpoint-N`` (weights, optimiser, schedule, random state; a sharded student's ranks write
``torch.distributed.checkpoint`` folders that any number of ranks can read). ``data_state.json`` adds the position in
the data, ``distill_state.json`` the rest of the run's state. Once all files and folders are synced, the mark
``checkpoint.json``, with size and sha256 of every file, is added by rename. Resume takes the newest checkpoint whose
files match its mark; deletion starts with the mark.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.manifest import FileEntry
from schemas.train_config import TargetForm, TrainConfig
from trainer.data.data_state import DataState
from trainer.run.output_files import difference, files_below, plain_mode, replace_text, settle_file, sync_folders
from trainer.run.resume import changes, settings_of

logger = logging.getLogger(__name__)

MARK_FILE = "checkpoint.json"
STATE_FILE = "distill_state.json"
DATA_STATE_FILE = "data_state.json"
MAX_MARK_BYTES = 64 << 20
HASHING_THREADS = 4
ADVICE = "set loop.resume to false to start over (this deletes the checkpoints), or change `output`"


class Mark(BaseModel):
    """``checkpoint.json``, written last: a checkpoint is complete if every file matches it."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    step: int = Field(ge=0)
    files: dict[str, FileEntry]


class RunState(BaseModel):
    """``distill_state.json``: the run's progress. Mutable: the trainer updates it every step."""

    model_config = ConfigDict(extra="forbid")

    data: DataState = Field(default_factory=DataState, exclude=True)  # in its own file
    settings: dict[str, Any]  # the configuration by dotted key; trainer/run/resume.py: what may change
    student: str = ""  # fingerprint of the initial weights
    tokenizer: str = ""  # digest of the student's tokenizer, if caches of another one are read
    validation: str = ""  # digest of the validation cache's manifest
    target: TargetForm | None = None  # of TLA; resolved, as the configuration may leave it to the cache
    global_step: int = 0
    planned_steps: int = 0  # the length of the schedules so far
    window: dict[str, float] = {}  # sums of the loss terms since the last line of metrics
    window_steps: int = 0  # steps in these sums
    best_kl: float | None = None  # lowest validation KL so far, nats per token
    best_step: int | None = None
    stale_validations: int = 0  # validations since best_step
    last_validation: dict[str, float] = {}
    best_validation: dict[str, float] = {}

    def stopped_early(self, patience: int | None) -> bool:
        """Whether ``patience`` validations in a row did not improve on the best."""
        return patience is not None and self.stale_validations >= patience

    def forget_best(self) -> None:
        """Reset early stopping."""
        self.best_kl, self.best_step, self.best_validation, self.stale_validations = None, None, {}, 0


def new_state(
    config: TrainConfig,
    cache_digest: str,
    rows_per_step: int,
    student: str = "",
    validation: str = "",
    tokenizer: str = "",
) -> RunState:
    """The state at step 0."""
    return RunState(
        data=DataState(cache_digest=cache_digest, seed=config.loop.seed),
        settings=settings_of(config, rows_per_step),
        student=student,
        tokenizer=tokenizer,
        validation=validation,
    )


def checkpoint_folders(output: Path) -> list[Path]:
    """List the checkpoint folders in ``output``, complete or not, newest first."""
    return [output / name for name in newest_first(path.name for path in output.glob("checkpoint-*"))]


def newest_first(names: Iterable[str]) -> list[str]:
    """Those names that are a checkpoint's, the one of the last step first."""
    matches = [match for match in (re.fullmatch(r"checkpoint-(\d+)", name) for name in names) if match]
    return [match[0] for match in sorted(matches, key=lambda match: int(match[1]), reverse=True)]


def write_state(folder: Path, state: RunState) -> None:
    """Write the states of data and run to a checkpoint folder."""
    replace_text(folder / DATA_STATE_FILE, state.data.model_dump_json() + "\n")
    replace_text(folder / STATE_FILE, state.model_dump_json(indent=1) + "\n")


def settle(folder: Path, names: Sequence[str]) -> dict[str, FileEntry]:
    """Sync these files of an incomplete checkpoint; return their sizes and checksums."""
    mode = plain_mode(folder)
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        entries = threads.map(lambda name: settle_file(folder / name, mode), names)
        return dict(zip(names, entries, strict=True))


def names_in(folder: Path) -> list[str]:
    """List the files of a checkpoint, relative to it, without the mark."""
    return [str(path.relative_to(folder)) for path in files_below(folder) if path.name != MARK_FILE]


def seal(folder: Path, step: int, files: dict[str, FileEntry]) -> None:
    """Complete a checkpoint: sync its folders, then write the mark with ``files`` from ``settle``."""
    sync_folders(folder)
    replace_text(folder / MARK_FILE, Mark(step=step, files=files).model_dump_json(indent=1) + "\n")


def parse_mark(data: bytes, checkpoint: str) -> Mark:
    """Parse the mark of the folder named ``checkpoint``. Raises UserError if it is not one of it."""
    mark = parse_json(Mark, data, where=MARK_FILE)
    if checkpoint != f"checkpoint-{mark.step}":
        raise UserError(f"{MARK_FILE}: of step {mark.step}")
    for needed in (STATE_FILE, DATA_STATE_FILE):
        if needed not in mark.files:
            raise UserError(f"{MARK_FILE}: does not list {needed}")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in mark.files):
        raise UserError(f"{MARK_FILE}: lists files outside of the checkpoint")
    return mark


def damage(folder: Path) -> str | None:
    """Describe why a checkpoint is not complete; None if it is. Reads every byte of it."""
    path = folder / MARK_FILE
    if not path.exists():
        return f"{MARK_FILE}: missing: the run was killed while saving"
    if not path.is_file() or path.stat().st_size > MAX_MARK_BYTES:
        return f"{MARK_FILE}: not a file of at most {MAX_MARK_BYTES} bytes"
    try:
        files = parse_mark(path.read_bytes(), folder.name).files
    except UserError as error:
        return str(error)
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        found = threads.map(lambda name: difference(folder / name, files[name]), files)
        return next((f"{name}: {wrong}" for name, wrong in zip(files, found, strict=True) if wrong), None)


def read_state(folder: Path) -> RunState:
    """Read the state of a complete checkpoint."""
    state = parse_json(RunState, (folder / STATE_FILE).read_bytes(), where=str(folder / STATE_FILE))
    state.data = parse_json(DataState, (folder / DATA_STATE_FILE).read_bytes(), where=str(folder / DATA_STATE_FILE))
    return state


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, mark first: a kill in between leaves an incomplete checkpoint."""
    (folder / MARK_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def keep_newest(output: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the ``keep`` newest checkpoints and the one of ``best_step``."""
    for name in outdated([folder.name for folder in checkpoint_folders(output)], keep, best_step):
        remove_checkpoint(output / name)


def outdated(names: list[str], keep: int, best_step: int | None) -> list[str]:
    """Those of some checkpoints, newest first, that are not to be kept."""
    return [name for name in names[keep:] if name != f"checkpoint-{best_step}"]


def newest_whole(output: Path) -> Path | None:
    """Return the newest complete checkpoint, or None if none was ever complete; log each damaged one.

    Raises UserError if there were complete checkpoints and all are damaged now.
    """
    damaged = {}
    for folder in checkpoint_folders(output):
        wrong = damage(folder)
        if wrong is None:
            return folder
        damaged[folder] = wrong
        logger.warning("%s is not complete and will be removed: %s", folder, wrong)
    for folder, wrong in damaged.items():
        if (folder / MARK_FILE).exists() or _is_of_older_version(folder):
            raise UserError(f"{folder}: no checkpoint is complete ({wrong}); restore the file from a copy, or {ADVICE}")
    return None


def _is_of_older_version(folder: Path) -> bool:
    """Whether this is a complete checkpoint from before marks existed."""
    try:
        return "stopped_early" in json.loads((folder / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return False


def find_resume(output: Path, start: RunState, resume: bool) -> tuple[Path | None, RunState]:
    """Return the newest complete checkpoint and its state, or (None, ``start``) if none exists or ``resume`` is False.

    Raises UserError if data, student or a setting changed that must not; logs permitted changes.
    """
    folder = newest_whole(output) if resume else None
    if folder is None:
        return None, start
    state = read_state(folder)
    if state.data.cache_digest != start.data.cache_digest:
        raise UserError(
            f"{folder}: was trained on the cache with manifest digest {state.data.cache_digest[:12]}…, "
            f"data.cache now has {start.data.cache_digest[:12]}…; {ADVICE}"
        )
    if state.student != start.student:
        raise UserError(
            f"{folder}: the student's initial weights had fingerprint {state.student[:12]}…, those of the "
            f"configuration have {start.student[:12]}…; {ADVICE}"
        )
    if state.tokenizer != start.tokenizer:
        raise UserError(
            f"{folder}: caches were read in the tokens of tokenizer {state.tokenizer[:12] or '(their own)'}, the "
            f"configuration's student has {start.tokenizer[:12] or '(their own)'}; {ADVICE}"
        )
    for key, before, now, rule in changes(state.settings, start.settings):
        if rule is None or rule.effect == "refused":
            raise UserError(
                f"{folder}: was trained with {key} = {json.dumps(before)}, the configuration now says "
                f"{json.dumps(now)}; {ADVICE}"
            )
        if rule.effect == "honoured":
            logger.info("%s: %s, was %s at step %d: %s", key, _short(now), _short(before), state.global_step, rule.note)
    patience = start.settings["loop.early_stopping_patience"]
    if state.validation != start.validation:
        state.forget_best()
    elif patience is not None and state.best_step is not None:
        wrong = damage(output / f"checkpoint-{state.best_step}")
        if wrong is not None:
            logger.warning(
                "step %d had the best validation KL, %.4g, but its checkpoint is not complete (%s): early stopping "
                "starts over from here", state.best_step, state.best_kl, wrong,
            )  # fmt: skip
            state.forget_best()
    state.settings, state.validation = start.settings, start.validation
    return folder, state


def say_length(state: RunState, steps: int) -> None:
    """Log that a resumed run has another number of steps than before."""
    if state.planned_steps not in (0, steps):
        logger.info(
            "the run now ends at step %d, before it was %d: from step %d on the schedules of learning rate and loss "
            "weights are those of %d steps", steps, state.planned_steps, state.global_step, steps,
        )  # fmt: skip
    if state.global_step > steps:
        logger.warning("step %d is past the end, step %d: no steps left", state.global_step, steps)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def remove_incomplete(output: Path) -> None:
    """Remove incomplete checkpoints, ignoring errors."""
    for folder in checkpoint_folders(output):
        if not (folder / MARK_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)


def remove_unused(output: Path, kept: Path | None) -> None:
    """Remove incomplete checkpoints and those newer than ``kept``; all of them if it is None."""
    newer = True
    for folder in checkpoint_folders(output):
        newer = newer and folder != kept
        if newer or not (folder / MARK_FILE).exists():
            remove_checkpoint(folder)
