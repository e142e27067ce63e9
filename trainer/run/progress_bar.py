"""Training progress on stderr: a progress bar on a terminal, periodic log lines elsewhere."""

import logging
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.losses.table import LOSSES

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0


def progress_callbacks() -> list[TrainerCallback]:
    """Return the progress callbacks for this stderr."""
    return [BarCallback()] if Console(stderr=True).is_terminal else [LineCallback()]


def describe(logs: dict[str, Any]) -> str:
    """Format a line of metrics: unweighted losses and their weighted sum, or validation metrics."""
    shown = (*LOSSES, "loss", "eval_kl", "eval_perplexity", "eval_bits_per_byte", "eval_top1_agreement")
    return "  ".join(f"{name.removeprefix('eval_')} {logs[name]:.4g}" for name in shown if name in logs)


class BarCallback(TrainerCallback):
    """A progress bar with the latest losses."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        self.task = self.progress.add_task("", total=args.max_steps, completed=state.global_step)
        self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance."""
        self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the losses; print validations above the bar."""
        text = describe(logs or {})
        if "eval_kl" in (logs or {}):
            self.progress.console.print(f"step {state.global_step}: validation {text}")
        else:
            self.progress.update(self.task, description=text)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the bar."""
        self.progress.stop()


class LineCallback(TrainerCallback):
    """A log line at most every ten seconds, and one per validation."""

    def __init__(self) -> None:
        self.last = 0.0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the line if due."""
        logs = logs or {}
        is_validation = "eval_kl" in logs
        if is_validation or time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            what = "validation " if is_validation else ""
            logger.info("step %d of %d: %s%s", state.global_step, args.max_steps, what, describe(logs))
