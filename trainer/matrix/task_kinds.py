"""The kinds of tasks, by the name that a configuration gives them."""

from schemas.matrix_config import BenchmarkTask, DistillationTask, LatencyTask, LmEvalTask
from trainer.matrix.distillation_task import DISTILLATION
from trainer.matrix.harness_task import BENCHMARK, LM_EVAL
from trainer.matrix.latency_task import LATENCY
from trainer.matrix.task_kind import TaskKind

KINDS: dict[type, TaskKind] = {
    BenchmarkTask: BENCHMARK,
    LmEvalTask: LM_EVAL,
    DistillationTask: DISTILLATION,
    LatencyTask: LATENCY,
}
