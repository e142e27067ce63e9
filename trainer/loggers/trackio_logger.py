"""Trackio: a SQLite file of this user, or the server or Space that its variables name; no dashboard is started."""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from trainer.loggers.run_logger import Line, LoggedRun, flattened


class TrackioLogger:
    """Logs to Trackio; a run is known by its name, so that ends with the id."""

    title = "Trackio"

    def __init__(self, run: LoggedRun) -> None:
        """Raises ImportError."""
        import trackio

        self._trackio, self._logged = trackio, run
        self._run: Any = None

    def open(self) -> None:
        """As said there."""
        run = self._logged
        with redirect_stdout(io.StringIO()):  # stdout is the summary's
            self._run = self._trackio.init(
                project=run.project,
                name=f"{run.name}-{run.id}",
                config=flattened(run.config),
                resume="allow",
                embed=False,
            )

    def write(self, lines: Sequence[Line]) -> None:
        """As said there."""
        for line in lines:
            values = {**line.values, "train/global_step": line.step}
            self._run.log(values, step=line.step)

    def close(self, failed: bool) -> None:
        """As said there."""
        with redirect_stdout(io.StringIO()):
            self._run.finish()
