"""Where a run's output is: a folder that all of its machines see, or a store (``stored_output.py``)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.train_config import LoopConfig
from trainer.run.owner import Fence, only_run_in


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run, and among those that see the same folder."""

    rank: int
    here: Sequence[int]  # the ranks that see this one's folder, in order

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def is_first_here(self) -> bool:
        """Whether this is the first rank that sees this folder."""
        return self.rank == self.here[0]

    def share(self, names: Sequence[str]) -> Sequence[str]:
        """This rank's share of the files in the folder."""
        return names[self.here.index(self.rank) :: len(self.here)]


class OutputPlace:
    """A folder that all ranks see. There is nothing to transfer: methods for that do nothing.

    Those marked collective are called on every rank.
    """

    def __init__(self, name: str, ranks: Ranks, fence: Fence) -> None:
        """name: the place as configured. fence: raises ConflictError once another run owns the place."""
        self.name = name
        self.ranks = ranks
        self.fence = fence

    def fetch_student(self) -> None:
        """Fetch the student's initial weights, if they were written before; collective."""

    def share_student(self) -> None:
        """Store the initial weights that rank 0 has, and give them to all machines; collective."""

    def fetch_progress(self, loop: LoopConfig) -> None:
        """Fetch the newest complete checkpoint, and what else a resumed run reads; collective."""

    def remove_unused(self, kept: str | None) -> None:
        """Remove incomplete checkpoints and those newer than ``kept``, or all."""

    def send_files(self, checkpoint: str, names: Sequence[str]) -> None:
        """Store these files of a checkpoint, which is not complete yet."""

    def complete(self, checkpoint: str, keep: int, best_step: int | None) -> None:
        """Complete a stored checkpoint; remove all but the ``keep`` newest and that of ``best_step``."""

    def fetch_checkpoint(self, checkpoint: str) -> None:
        """Fetch what this machine lacks of a complete checkpoint."""

    def send_results(self) -> None:
        """Store the final model, if there is one, metrics and summary."""

    def leave(self) -> None:
        """Remove what a finished run no longer needs on this machine."""


@contextmanager
def output_folder(folder: Path, command: str, rank: int, n_ranks: int) -> Iterator[OutputPlace]:
    """A local folder, of which rank 0 holds the lease within the block. Raises ConflictError if it is in use."""
    with only_run_in(str(folder), command, rank == 0) as fence:
        yield OutputPlace(str(folder), Ranks(rank, range(n_ranks)), fence)
