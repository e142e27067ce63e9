"""Tasks that lm-eval runs: known benchmarks from published files, and task files of the user's own."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from schemas.errors import UserError
from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_config import BenchmarkTask, HarnessTask, LmEvalTask
from trainer.matrix.digests_of_cell import digests_of_files
from trainer.matrix.harness_files import (
    benchmark_files,
    data_place,
    local_data_files,
    own_tasks,
    task_files,
    write_benchmark,
)
from trainer.matrix.task_kind import GET_VLLM, CellResult, TaskKind


def _check_engine(task: HarnessTask) -> None:
    own_tasks()
    if task.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise UserError(f"backend: vllm: not installed; use hf, or run: {GET_VLLM}")


def _check_benchmark(task: BenchmarkTask) -> None:
    _check_engine(task)
    benchmark_files(task)


def _benchmark_data(task: BenchmarkTask) -> dict[str, str]:
    files = [file for splits in benchmark_files(task).values() for found in splits.values() for file in found]
    place = data_place(task)
    return digests_of_files(files, place if place.is_dir() else place.parent)


def _check_lm_eval(task: LmEvalTask) -> None:
    _check_engine(task)
    local_data_files(task)


def _lm_eval_data(task: LmEvalTask) -> dict[str, str]:
    return digests_of_files(task_files(task), Path(task.folder)) | digests_of_files(local_data_files(task), Path("/"))


def _programs(task: HarnessTask) -> Sequence[str]:
    return ("lm-eval", "torch", *(("transformers",) if task.backend == "hf" else ("vllm",)))


def _run_benchmark(task: BenchmarkTask, model: MatrixModel, backends: Backends) -> CellResult:
    from trainer.matrix.harness_run import run_harness
    from trainer.matrix.published_files import PUBLISHED

    with TemporaryDirectory(prefix="lm-eval-") as made:
        clusters = write_benchmark(task, Path(made))
        return run_harness(task, model, backends, Path(made), clusters, None, PUBLISHED[task.benchmark].measure)


def _run_lm_eval(task: LmEvalTask, model: MatrixModel, backends: Backends) -> CellResult:
    from trainer.matrix.harness_run import run_harness

    return run_harness(task, model, backends, Path(task.folder), {task.task: ""}, task.cluster, None)


def _backends(task: HarnessTask) -> Sequence[str]:
    return (task.backend,)


BENCHMARK = TaskKind(_check_benchmark, _benchmark_data, _run_benchmark, _programs, _backends)
LM_EVAL = TaskKind(_check_lm_eval, _lm_eval_data, _run_lm_eval, _programs, _backends)
