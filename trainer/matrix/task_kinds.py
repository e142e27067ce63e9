"""The kinds of tasks, by the name that a configuration gives them."""

from schemas.matrix_config import BenchmarkTask, DistillationTask, LatencyTask, LmEvalTask
from schemas.matrix_tasks import CodeSummariesTask, CodeTask, LongContextTask
from trainer.matrix.distillation_task import DISTILLATION
from trainer.matrix.harness_task import BENCHMARK, LM_EVAL
from trainer.matrix.latency_task import LATENCY
from trainer.matrix.task_kind import TaskKind
from trainer.matrix.tasks.code_summaries_task import CODE_SUMMARIES
from trainer.matrix.tasks.code_task import CODE
from trainer.matrix.tasks.long_context_task import LONG_CONTEXT

KINDS: dict[type, TaskKind] = {
    BenchmarkTask: BENCHMARK,
    LmEvalTask: LM_EVAL,
    DistillationTask: DISTILLATION,
    LatencyTask: LATENCY,
    CodeTask: CODE,
    CodeSummariesTask: CODE_SUMMARIES,
    LongContextTask: LONG_CONTEXT,
}
