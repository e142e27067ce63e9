"""What the tasks whose models write text have in common."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import UserError
from schemas.matrix_tasks import WritingTask
from trainer.matrix.digests_of_cell import file_digest

ENGINE = {"hf": "transformers", "vllm": "vllm"}
SHOWN = 2000  # characters


def check_engine(task: WritingTask) -> None:
    """Raise UserError if what runs the models is not installed."""
    if importlib.util.find_spec(ENGINE[task.backend]) is None:
        raise UserError(f"backend: {task.backend}: {ENGINE[task.backend]} is not installed; install the extra for it")


def data_digests(task: WritingTask) -> dict[str, str]:
    """sha256 of each data file, by its setting."""
    paths = {place: getattr(task, place) for place in task.PLACES}
    return {place: file_digest(Path(path)) for place, path in paths.items() if path is not None}


def used_programs(task: WritingTask) -> Sequence[str]:
    """The distributions that decide what is written."""
    return ("torch", "transformers", *(("vllm",) if task.backend == "vllm" else ()))


def used_backends(task: WritingTask) -> Sequence[str]:
    """The backend whose settings decide what is written."""
    return (task.backend,)


def shown(text: str) -> str:
    """The beginning of a text, for people."""
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def shown_end(text: str) -> str:
    """The end of a prompt, where the question is."""
    return text if len(text) <= SHOWN else "…" + text[-(SHOWN - 1) :]
