"""``metrics.jsonl``: one JSON object per logged step or validation, each step once.

On resume, lines of steps that a crash has undone are removed, so the file always reads as one run;
TensorBoard likewise.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.loggers.report_lines import ReportLines
from trainer.loggers.run_logger import LoggedRun
from trainer.run.context import RunContext
from trainer.run.output_files import replace_text
from trainer.run.run_record import write_run_file


def cut_metrics(path: Path, last_step: int, first_step: int = 1) -> None:
    """Keep only the valid lines of steps ``first_step`` to ``last_step``; create the file if absent."""
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # torn by a kill, or damaged
            if isinstance(record, dict) and first_step <= record.get("step", -1) <= last_step:
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


def reports(
    run: RunContext, last_step: int, parameters: int, callbacks: Sequence[TrainerCallback]
) -> list[TrainerCallback]:
    """Return the callbacks of rank 0: metrics.jsonl, the loggers of ``loop.report_to``, then ``callbacks``.

    Writes ``run.json``. last_step: done before. parameters: of the student.
    """
    record, loop = write_run_file(run, parameters), run.config.loop
    found: list[TrainerCallback] = [JsonlCallback(run.output / "metrics.jsonl")]
    if "tensorboard" in loop.report_to:
        found.append(_tensorboard(run.output, last_step, record.config))
    name = run.place.name.rstrip("/").rpartition("/")[2] or "run"
    logged = LoggedRun(record.id, name, loop.project, run.output, record.config)
    return [*found, ReportLines(loop.report_to, logged), *callbacks]


@contextmanager
def closing(callbacks: Sequence[TrainerCallback]) -> Iterator[None]:
    """End the runs of loggers after the block, also after an error in it."""
    failed = True
    try:
        yield
        failed = False
    finally:
        for each in callbacks:
            if isinstance(each, ReportLines):
                each.close(failed)


def _tensorboard(output: Path, last_step: int, config: Mapping[str, Any]) -> TrainerCallback:
    """Write TensorBoard metrics to ``output/tensorboard``; purge steps after ``last_step`` of a killed run."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    writer = SummaryWriter(log_dir=str(output / "tensorboard"), purge_step=last_step + 1)
    writer.add_text("config", f"```json\n{json.dumps(config, indent=1)}\n```", last_step)

    class Flushing(TensorBoardCallback):
        def on_train_end(self, *arguments: Any, **kwargs: Any) -> None:
            writer.flush()  # raises its thread's write errors; close() does not
            super().on_train_end(*arguments, **kwargs)

    return Flushing(writer)
