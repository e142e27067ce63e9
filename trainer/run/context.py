"""What stays constant during a run."""

from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments

from schemas.train_config import TrainConfig
from teacher_cache.stop_request import StopRequest
from trainer.run.checkpoint import RunState
from trainer.run.output_place import OutputPlace


@dataclass(frozen=True)
class RunContext:
    """The configuration, its ``TrainingArguments``, the stop request, and the place of the output."""

    config: TrainConfig  # its output is a folder, also where the place is a store
    arguments: TrainingArguments
    stop: StopRequest  # turns true when the run should end early
    place: OutputPlace

    @property
    def output(self) -> Path:
        """The folder that this machine's ranks work in."""
        return Path(self.config.output)

    def fence(self) -> None:
        """Raise ConflictError once another run owns the place; call it before committing anything."""
        self.place.fence()

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files."""
        return self.arguments.process_index == 0

    @property
    def sharded(self) -> bool:
        """Whether the student is sharded over ranks (FSDP)."""
        return self.config.loop.parallel == "fsdp"

    @property
    def skip_corrupt(self) -> bool:
        """Whether unreadable samples are skipped."""
        return self.config.data.on_corrupt == "skip"

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimiser step, over all ranks."""
        loop = self.config.loop
        return loop.micro_batch_size * loop.gradient_accumulation * self.arguments.world_size

    def is_finished(self, state: RunState) -> bool:
        """Whether no step is left; valid once the rows are planned."""
        patience = self.config.loop.early_stopping_patience
        return state.global_step >= self.arguments.max_steps or state.stopped_early(patience)
