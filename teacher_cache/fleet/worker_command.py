"""The command that every worker of a fleet runs, and what its configuration asks of the machines."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel

from schemas.curate_config import CurateConfig
from schemas.errors import UserError, printable
from schemas.load import PATHS, load_config
from teacher_cache.curation.stages import scratch_path
from teacher_cache.fleet.fleet_parts import CONFIGS, FleetConfig

MAX_NAME = 40  # characters of a fleet's name: job names of Kubernetes have 63, with the index of a pod


@dataclass(frozen=True)
class WorkerCommand:
    """``teacher-cache PART CONFIG --queue --set …``, and its configuration."""

    part: str  # run, generate or curate
    config: str
    overrides: tuple[str, ...]
    settings: FleetConfig

    def words(self, config: str) -> list[str]:
        """The command line where the configuration lies at ``config``."""
        path = f"./{config}" if config.startswith("-") else config
        sets = [word for each in self.overrides for word in ("--set", each)]
        return ["teacher-cache", self.part, path, "--queue", *sets]

    @property
    def name(self) -> str:
        """A name for the job, after the configuration's file: lower-case letters, digits and hyphens."""
        stem = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(self.config).stem.lower()).lstrip("-0123456789")
        return stem[:MAX_NAME].strip("-") or "teacher-cache"

    def gpus(self, wanted: int | None) -> int:
        """GPUs of a worker: ``wanted``, or what the engine needs. Raises UserError if those are too few."""
        if isinstance(self.settings, CurateConfig):
            return wanted or 0
        engine = self.settings.engine
        needed = engine.tensor_parallel
        if engine.kind == "transformers":
            needed = 0 if engine.device == "cpu" else 1
        if wanted is not None and 0 < wanted < needed:
            raise UserError(
                f"--gpus {wanted}: the model is split over {needed} devices (engine.tensor_parallel); give each worker "
                "as many, or 0 where there are only CPUs"
            )
        return needed if wanted is None else wanted

    @property
    def shared_memory(self) -> bool:
        """Whether processes of a worker talk through shared memory."""
        return not isinstance(self.settings, CurateConfig) and self.settings.engine.tensor_parallel > 1

    def written(self) -> dict[str, str]:
        """Folders that all workers write to, by key: the output, unless it is a store, and where they work on it."""
        places = {"output.path": self.settings.output.path}
        if isinstance(self.settings, CurateConfig):
            places["output.scratch"] = scratch_path(self.settings)
        return {key: path for key, path in places.items() if "://" not in path}

    def paths(self) -> Iterator[tuple[str, str]]:
        """Key and value of each path of the configuration, other than URLs and what workers write to."""
        for key, path in _paths(self.settings, ""):
            if key not in ("output.path", "output.scratch") and "://" not in path:
                yield key, path


def worker_command(part: str, config: str, overrides: tuple[str, ...]) -> WorkerCommand:
    """Check the configuration, and that a script can carry it. Raises UserError."""
    settings: Any = load_config(CONFIGS[part], config, overrides)
    for text in (config, *overrides):
        check_printable(text, "--set" if text is not config else "the configuration")
    return WorkerCommand(part, config, overrides, settings)


def check_printable(text: str, what: str) -> None:
    """Raise UserError for line breaks and other characters that a script cannot carry."""
    if printable(text) != text:
        raise UserError(
            f"{what}: {text!r}: line breaks and control characters cannot be carried over; write it without"
        )


def check_form(option: str, text: str | None, form: str, example: str) -> None:
    """Raise UserError if a value, unless None, is not wholly of the form, a regular expression."""
    if text is not None and not re.fullmatch(form, text, re.ASCII):
        raise UserError(f"{option}: {text!r}: expected a value such as {example}")


def _paths(settings: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        for key, each in _numbered(f"{prefix}{name}", value):
            if isinstance(each, BaseModel):
                yield from _paths(each, f"{key}.")
            elif name in PATHS and isinstance(each, str):
                yield key, each


def _numbered(key: str, value: object) -> list[tuple[str, object]]:
    return [(f"{key}.{n}", each) for n, each in enumerate(value)] if isinstance(value, list) else [(key, value)]
