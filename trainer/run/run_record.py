"""``run.json``: the id by which loggers know a run, kept at resume, and its settings."""

import logging
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.run_file import RunFile
from trainer.run.context import RunContext
from trainer.run.output_files import replace_text
from trainer.run.output_names import MAX_BYTES, RUN_FILE
from trainer.run.summary import device_name

logger = logging.getLogger(__name__)


def write_run_file(run: RunContext, parameters: int) -> RunFile:
    """Write ``run.json`` at the start of training, on rank 0; a resumed run keeps id and first start."""
    path, loop = run.output / RUN_FILE, run.config.loop
    before = read_run_file(path) if loop.resume and path.is_file() else None
    config: dict[str, Any] = run.config.model_dump(mode="json") | {"output": run.place.name}
    record = RunFile(
        id=secrets.token_hex(6) if before is None else before.id,
        started=datetime.now(UTC).isoformat(timespec="seconds") if before is None else before.started,
        starts=1 if before is None else before.starts + 1,
        planned_steps=run.arguments.max_steps,
        rows_per_step=run.rows_per_step,
        ranks=run.arguments.world_size,
        parameters=parameters,
        device=device_name()[:200],
        config=config,
    )
    replace_text(path, record.model_dump_json(indent=1) + "\n")
    return record


def read_run_file(path: Path) -> RunFile | None:
    """Read ``run.json``; None, with a warning, if it is damaged."""
    try:
        with open(path, "rb") as file:
            return parse_json(RunFile, file.read(MAX_BYTES), where=str(path))
    except (UserError, ValueError) as error:
        logger.warning("%s; loggers will start another run", error)
        return None
