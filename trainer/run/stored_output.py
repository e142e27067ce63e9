"""A run's output in a store: the run works in a folder of each of its machines, and what it completes is uploaded.

The store is the truth: at the start the newest complete checkpoint there is fetched, and whatever else lies in the
working folder is removed. A folder's files are uploaded before the one that makes it whole: ``checkpoint.json``,
``distill_init.json``, ``config.json`` of the final model. Deletion starts with that one. The lease on the URL is rank
0's; other ranks write under it.
"""

import hashlib
import logging
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from schemas.errors import CorruptCacheError, UserError
from schemas.train_config import LoopConfig, TrainConfig
from teacher_cache.shards.lease import LentLease, whole_place
from trainer.run.checkpoint import (
    ADVICE,
    MARK_FILE,
    MAX_MARK_BYTES,
    checkpoint_folders,
    newest_first,
    outdated,
    parse_mark,
    read_state,
    remove_checkpoint,
)
from trainer.run.output_files import difference, files_below, replace_text
from trainer.run.output_names import METRICS, MODEL_MARKS, RUN_FILE, SAMPLES_FILE, SUMMARY
from trainer.run.output_place import OutputPlace, Ranks, output_folder
from trainer.run.owner import Fence, only_run_in
from trainer.run.run_store import RunStore, steadily
from trainer.student.build import INIT_FOLDER, RECIPE_FILE
from trainer.student.parallel import from_all, from_first

REPORTED = (METRICS, RUN_FILE, SAMPLES_FILE)
MLRUNS = "mlruns"  # goes on where it ended; other loggers write new files, which belong together by the run's id
LOGGED = ("tensorboard", "wandb", MLRUNS)  # folders of loggers
logger = logging.getLogger(__name__)


def is_url(output: str) -> bool:
    """Whether an output is in a store."""
    return "://" in output and not RunStore(output).is_local


def working_config(config: TrainConfig) -> TrainConfig:
    """The configuration with a folder of this machine as ``output``: itself, unless that is a URL.

    Raises UserError if the URL cannot be written to in principle.
    """
    if "://" not in config.output:
        return config
    store = RunStore(config.output)
    if store.is_local:
        return config.model_copy(update={"output": str(store.local_path("x").parent)})
    if not store.can_list:
        raise UserError(f"output: {config.output}: plain HTTP is read-only; use a folder or an object store")
    parent = Path(config.loop.scratch or Path(tempfile.gettempdir()) / "train-student")
    digest = hashlib.sha256(config.output.rstrip("/").encode()).hexdigest()[:16]
    return config.model_copy(update={"output": str(parent.absolute() / f"{socket.gethostname()}-{digest}")})


@contextmanager
def open_output(output: str, folder: Path, rank: int, local_rank: int, n_ranks: int) -> Iterator[OutputPlace]:
    """The place of a run's output, for this run alone within the block; collective.

    output: as configured. folder: from ``working_config``. Raises ConflictError if another run uses either.
    """
    command = "train-student run"
    if not is_url(output):
        with output_folder(folder, command, rank, n_ranks) as place:
            yield place
        return
    store = RunStore(output)
    with whole_place(store, command) if rank == 0 else nullcontext() as lease:
        holder = from_first(lambda: None if lease is None else lease.holder)
        starts = from_all(rank - local_rank)  # the first rank of each rank's machine
        ranks = Ranks(rank, [each for each, start in enumerate(starts) if start == rank - local_rank])
        assert holder is not None
        fence = lease or LentLease(store, holder)
        with only_run_in(str(folder), command, ranks.is_first_here):
            yield StoredOutput(output, ranks, store.fenced(fence), fence.check, folder)


class StoredOutput(OutputPlace):
    """A place in a store, and the folder in which this machine's ranks work."""

    def __init__(self, name: str, ranks: Ranks, store: RunStore, fence: Fence, folder: Path) -> None:
        """store: fenced by the run's lease."""
        super().__init__(name, ranks, fence)
        self._store, self._folder = store, folder
        self._sent: dict[str, tuple[int, int]] = {}  # size and time of files that grow, when they were uploaded

    def fetch_student(self) -> None:
        """As said there; a folder that the store does not have is removed."""
        if self.ranks.is_first_here:
            self._fetch_student()
        from_all(None)

    def share_student(self) -> None:
        """As said there."""
        made = self._folder / INIT_FOLDER
        if self.ranks.is_first and made.exists() and not self._store.exists(f"{INIT_FOLDER}/{RECIPE_FILE}"):
            self._replace(INIT_FOLDER, RECIPE_FILE)
        from_all(None)
        if self.ranks.is_first_here and not self.ranks.is_first:
            self._fetch_student()
        from_all(None)

    def fetch_progress(self, loop: LoopConfig) -> None:
        """As said there. Raises UserError if there were complete checkpoints and all are damaged now."""
        kept = from_first(lambda: self._fetch_newest() if loop.resume else None)
        best = None
        if self.ranks.is_first:
            for name in (*REPORTED, SUMMARY):
                self._fetch_if_there(name)
            if "mlflow" in loop.report_to:
                shutil.rmtree(self._folder / MLRUNS, ignore_errors=True)
                self._store.fetch_all(dict.fromkeys(self._store.files(MLRUNS)), self._folder)
            if kept is not None and loop.early_stopping_patience is not None:
                best = f"checkpoint-{read_state(self._folder / kept).best_step}"
                if best in self._store.folders():
                    self._fetch(best)  # find_resume says what is wrong with it
        elif self.ranks.is_first_here and kept is not None:
            self.fetch_checkpoint(kept)
        if self.ranks.is_first_here:
            for folder in checkpoint_folders(self._folder):
                if folder.name not in (kept, best):
                    remove_checkpoint(folder)
        from_all(None)

    def remove_unused(self, kept: str | None) -> None:
        """As said there."""
        newer = True
        for name in newest_first(self._store.folders()):
            newer = newer and name != kept
            if newer or not self._store.exists(f"{name}/{MARK_FILE}"):
                self._store.remove(name, MARK_FILE)

    def send_files(self, checkpoint: str, names: Sequence[str]) -> None:
        """As said there."""
        self._store.send(self._folder, [f"{checkpoint}/{name}" for name in names])

    def complete(self, checkpoint: str, keep: int, best_step: int | None) -> None:
        """As said there: metrics first, so that those of a complete checkpoint's steps are always there."""
        self._send_reports()
        mark = (self._folder / checkpoint / MARK_FILE).read_bytes()
        steadily(partial(self._store.put, f"{checkpoint}/{MARK_FILE}", mark))
        for name in outdated(newest_first(self._store.folders()), keep, best_step):
            self._store.remove(name, MARK_FILE)

    def fetch_checkpoint(self, checkpoint: str) -> None:
        """As said there. Raises UserError if the stored checkpoint is damaged."""
        wrong = self._fetch(checkpoint)
        if wrong is not None:
            raise UserError(f"{self._store.where(checkpoint)}: is not complete ({wrong})")

    def send_results(self) -> None:
        """As said there; the summary last."""
        self._send_reports()
        for folder in sorted(self._folder.glob("final*")):
            for mark in [name for name in MODEL_MARKS if (folder / name).is_file()]:
                self._replace(folder.name, mark)
        self._send_grown([SUMMARY])

    def leave(self) -> None:
        """As said there: the store has it all."""
        if self.ranks.is_first_here:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _fetch_student(self) -> None:
        shutil.rmtree(self._folder / INIT_FOLDER, ignore_errors=True)
        files = self._store.files(INIT_FOLDER)
        mark = f"{INIT_FOLDER}/{RECIPE_FILE}"
        if mark in files:
            unfinished = self._folder / f"{INIT_FOLDER}.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            self._store.fetch_all(dict.fromkeys(files), unfinished)
            (unfinished / INIT_FOLDER).rename(self._folder / INIT_FOLDER)
            unfinished.rmdir()

    def _fetch_newest(self) -> str | None:
        """Fetch the newest complete checkpoint; returns its name."""
        damaged = ""
        for name in newest_first(self._store.folders()):
            if not self._store.exists(f"{name}/{MARK_FILE}"):
                continue
            wrong = self._fetch(name)
            if wrong is None:
                return name
            logger.warning("%s is not complete and will be removed: %s", self._store.where(name), wrong)
            damaged = f"{self._store.where(name)}: no checkpoint is complete ({wrong})"
        if damaged:
            raise UserError(f"{damaged}; restore the file from a copy, or {ADVICE}")
        return None

    def _fetch(self, name: str) -> str | None:
        """Make a checkpoint in the folder what its mark in the store lists; returns what is wrong with that one."""
        folder = self._folder / name
        try:
            data = self._store.read(f"{name}/{MARK_FILE}", MAX_MARK_BYTES)
            files = parse_mark(data, name).files
        except (CorruptCacheError, ValueError) as error:
            return str(error)
        for path in files_below(folder):
            if str(path.relative_to(folder)) not in files:
                path.unlink()
        lacking = {f"{name}/{each}": entry for each, entry in files.items() if difference(folder / each, entry)}
        try:
            self._store.fetch_all(lacking, self._folder)
        except CorruptCacheError as error:
            return str(error)
        replace_text(folder / MARK_FILE, data.decode())
        return None

    def _fetch_if_there(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)
        if self._store.exists(name):
            self._store.fetch(name, self._folder)

    def _send_reports(self) -> None:
        files = [path for name in LOGGED for path in files_below(self._folder / name)]
        self._send_grown([*REPORTED, *(str(path.relative_to(self._folder)) for path in files)])

    def _send_grown(self, names: Sequence[str]) -> None:
        """Upload files that have changed since the last time."""
        there = [name for name in names if (self._folder / name).is_file()]
        stats = {name: (self._folder / name).stat() for name in there}
        now = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
        for name in [name for name in there if now[name] != self._sent.get(name)]:
            content = (self._folder / name).read_bytes()
            steadily(partial(self._store.put, name, content))  # replaces the former one at once
        self._sent |= now

    def _replace(self, name: str, last: str) -> None:
        """Upload a folder, ``last`` at the end; there is no such folder in the store until then."""
        self._store.remove(name, last)
        names = [str(path.relative_to(self._folder)) for path in files_below(self._folder / name)]
        mark = f"{name}/{last}"
        self._store.send(self._folder, [each for each in names if each != mark])
        self._store.send(self._folder, [mark])
