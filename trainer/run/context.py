"""What holds for the whole of a run."""

from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments

from schemas.train_config import TrainConfig
from teacher_cache.stop_request import StopRequest
from trainer.run.checkpoint import RunState
from trainer.run.owner import Fence


@dataclass(frozen=True)
class RunContext:
    """The configuration, what transformers makes of it, and who may end the run."""

    config: TrainConfig
    arguments: TrainingArguments
    stop: StopRequest  # turns true when the run should end early
    fence: Fence  # raises when the output folder has become another run's

    @property
    def output(self) -> Path:
        """The folder that the run writes to."""
        return Path(self.config.output)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, of one or several."""
        return self.arguments.process_index == 0

    @property
    def sharded(self) -> bool:
        """Whether each process has a share of the student."""
        return self.config.loop.parallel == "fsdp"

    @property
    def skip_corrupt(self) -> bool:
        """Whether samples that cannot be read are left out."""
        return self.config.data.on_corrupt == "skip"

    @property
    def rows_per_step(self) -> int:
        """Rows of the global batch of one optimiser step."""
        loop = self.config.loop
        return loop.micro_batch_size * loop.gradient_accumulation * self.arguments.world_size

    def is_finished(self, state: RunState) -> bool:
        """Whether no step is left to do; known when the rows are planned."""
        patience = self.config.loop.early_stopping_patience
        return state.global_step >= self.arguments.max_steps or state.stopped_early(patience)
