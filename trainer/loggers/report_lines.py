"""The callback of rank 0 that hands every line of metrics to the loggers of ``loop.report_to``."""

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from schemas.errors import UserError
from trainer.loggers.background import Background
from trainer.loggers.mlflow_logger import MlflowLogger
from trainer.loggers.run_logger import Line, LoggedRun, RunLogger, dashboard_names
from trainer.loggers.trackio_logger import TrackioLogger
from trainer.loggers.wandb_logger import WandbLogger

LOGGERS: dict[str, tuple[str, str, Callable[[LoggedRun], RunLogger]]] = {  # name: module, package, class
    "wandb": ("wandb", "wandb", WandbLogger),
    "mlflow": ("mlflow", "mlflow-skinny", MlflowLogger),
    "trackio": ("trackio", "trackio", TrackioLogger),
}


def check_loggers(names: Sequence[str]) -> None:
    """Raise UserError if the package of a logger is not installed. Imports none."""
    for name in names:
        module, package, _ = LOGGERS.get(name, ("", "", None))
        if module and importlib.util.find_spec(module) is None:
            raise UserError(
                f"loop.report_to: {name} is not installed; `{sys.executable} -m pip install {package}`, or leave it out"
            )


class ReportLines(TrainerCallback):
    """Hands lines of metrics to loggers. ``close`` must be called, also after an error."""

    def __init__(self, names: Sequence[str], run: LoggedRun) -> None:
        """Imports the packages here: a data worker must not be forked while another thread does."""
        self._loggers = [Background(LOGGERS[name][2](run)) for name in names if name in LOGGERS]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the runs."""
        for each in self._loggers:
            each.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand over one line."""
        if logs:
            line = Line(state.global_step, time.time(), dashboard_names(logs))
            for each in self._loggers:
                each.add(line)

    def close(self, failed: bool) -> None:
        """End the runs."""
        for each in self._loggers:
            each.close(failed)
