"""W&B: history by ``train/global_step``, since W&B drops what is logged for a step of its own counter a second time."""

import logging
from collections.abc import Sequence
from typing import Any

from trainer.loggers.run_logger import Line, LoggedRun

INIT_SECONDS = 30.0
STEP = "train/global_step"
logger = logging.getLogger(__name__)


class WandbLogger:
    """Logs to W&B's server if logged in and reachable, else to a folder that ``wandb sync`` uploads."""

    title = "W&B"

    def __init__(self, run: LoggedRun) -> None:
        """Raises ImportError."""
        import wandb

        self._wandb, self._logged = wandb, run
        self._run: Any = None

    def open(self) -> None:
        """As said there; without credentials or server: offline."""
        mode = self._wandb.setup().settings.mode
        if mode in ("online", "shared") and not self._has_credentials():
            logger.warning("loop.report_to: W&B: not logged in (wandb login, WANDB_API_KEY): logging offline")
            mode = "offline"
        try:
            self._run = self._init(mode)
        except Exception as error:
            if mode == "offline":
                raise
            logger.warning("loop.report_to: W&B: %s: logging offline", " ".join(str(error).split())[:200])
            self._wandb.teardown()  # it counts the failed run as one in use
            self._run = self._init("offline")
        self._run.define_metric(STEP)
        for group in ("train/*", "eval/*"):
            self._run.define_metric(group, step_metric=STEP)
        if self._run.offline:
            logger.info("W&B: offline run in %s; `wandb sync` uploads it", self._run.dir)
        elif self._run.url:
            logger.info("W&B: %s", self._run.url)

    def write(self, lines: Sequence[Line]) -> None:
        """As said there."""
        for line in lines:
            self._run.log({**line.values, STEP: line.step})

    def close(self, failed: bool) -> None:
        """As said there."""
        self._run.finish(exit_code=int(failed))

    def _has_credentials(self) -> bool:
        """Whether there is an API key; asks neither user nor server."""
        try:
            return bool(self._wandb.login(prompt=False, verify=False))
        except Exception:  # a key of the wrong form, an unreadable netrc
            return False

    def _init(self, mode: str) -> Any:
        settings = self._wandb.Settings(mode=mode, init_timeout=INIT_SECONDS, silent=True, console="off")
        run = self._logged
        return self._wandb.init(
            project=run.project,
            id=run.id,
            name=run.name,
            dir=str(run.folder),
            config=dict(run.config),
            resume=None if mode == "offline" else "allow",  # an offline run of the same id is joined when synced
            settings=settings,
        )
