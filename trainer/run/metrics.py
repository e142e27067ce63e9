"""``metrics.jsonl``: one JSON object per logged step or validation, each step once.

On resume, lines of steps that a crash has undone are removed, so the file always reads as one run;
TensorBoard likewise.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.run.output_files import replace_text


def cut_metrics(path: Path, last_step: int) -> None:
    """Keep only the valid lines of steps ≤ ``last_step``; create the file if absent."""
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # torn by a kill, or damaged
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
    """Return the callbacks of rank 0: metrics.jsonl, TensorBoard, then ``callbacks``."""
    return [JsonlCallback(output / "metrics.jsonl"), _tensorboard(output, last_step), *callbacks]


def _tensorboard(output: Path, last_step: int) -> TrainerCallback:
    """Write TensorBoard metrics to ``output/tensorboard``; purge steps after ``last_step`` of a killed run."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    writer = SummaryWriter(log_dir=str(output / "tensorboard"), purge_step=last_step + 1)

    class Flushing(TensorBoardCallback):
        def on_train_end(self, *arguments: Any, **kwargs: Any) -> None:
            writer.flush()  # raises its thread's write errors; close() does not
            super().on_train_end(*arguments, **kwargs)

    return Flushing(writer)
