"""``metrics.jsonl``: one JSON object a line, one line a logged step or validation; each step appears once.

Lines of steps that a crash has undone are cut off when the run resumes, so the file always reads as one run.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.run.output_files import replace_text


def cut_metrics(path: Path, last_step: int) -> None:
    """Keep only whole lines about steps ≤ ``last_step``; the file appears if it was absent."""
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the process was killed while it wrote this line, or the file was damaged
            if isinstance(record, dict) and 0 < record.get("step", 0) <= last_step:
                kept.append(line + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, "".join(kept))


class JsonlCallback(TrainerCallback):
    """Appends what the trainer logs to ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line and flush it."""
        if state.is_world_process_zero and logs:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def reports(output: Path, last_step: int, callbacks: Sequence[TrainerCallback]) -> list[TrainerCallback]:
    """What writes down how the run goes, and ``callbacks``: for one rank."""
    return [JsonlCallback(output / "metrics.jsonl"), _tensorboard(output, last_step), *callbacks]


def _tensorboard(output: Path, last_step: int) -> TrainerCallback:
    """Metrics for TensorBoard in ``output/tensorboard``; hides what a killed run has logged after ``last_step``."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    writer = SummaryWriter(log_dir=str(output / "tensorboard"), purge_step=last_step + 1)

    class Flushing(TensorBoardCallback):
        def on_train_end(self, *arguments: Any, **kwargs: Any) -> None:
            writer.flush()  # raises what its thread could not write; closing does not
            super().on_train_end(*arguments, **kwargs)

    return Flushing(writer)
