"""What code does, in a sentence: CodeXGLUE's code-to-text, smoothed BLEU-4."""

from pathlib import Path

from pydantic import BaseModel

from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_cell import MatrixItem, Measure
from schemas.matrix_tasks import CodeSummariesTask
from trainer.matrix.item_means import mean_of
from trainer.matrix.task_kind import CellResult, TaskKind
from trainer.matrix.tasks.asked_text import Sampling
from trainer.matrix.tasks.jsonl_items import read_items
from trainer.matrix.tasks.smoothed_bleu import smoothed_bleu
from trainer.matrix.tasks.writing_task import check_engine, data_digests, shown, shown_end, used_backends, used_programs

MEASURE = "smoothed BLEU-4"


class Function(BaseModel):
    """A line of CodeXGLUE's files. Their ``code`` is not read: Python's holds the docstring that is asked for."""

    code_tokens: list[str]
    docstring_tokens: list[str]
    repo: str = ""


def check(task: CodeSummariesTask) -> None:
    """Raise UserError if a file or a package is missing."""
    read_items(task.data, Function, task.limit)
    check_engine(task)


def run(task: CodeSummariesTask, model: MatrixModel, backends: Backends, folder: Path) -> CellResult:
    """Have a model write summaries; what was written is kept in ``folder``."""
    from trainer.matrix.tasks.written_texts import written_texts

    functions = read_items(task.data, Function, task.limit)
    names = [f"{number:07d}" for number in range(1, len(functions) + 1)]
    prompts = [task.instruction.replace("{code}", " ".join(each.code_tokens)) for each in functions]
    written = written_texts(
        task,
        model,
        backends,
        prompts,
        [f"{task.data}: item {name}" for name in names],
        Sampling(task.max_new_tokens),
        folder,
        task.max_prompt_tokens,
    )
    items = []
    for name, function, prompt, (text,) in zip(names, functions, prompts, written, strict=True):
        answer, wanted = first_line(text), " ".join(" ".join(function.docstring_tokens).split())
        items.append(
            MatrixItem(
                id=name,
                cluster=function.repo,
                scores={MEASURE: smoothed_bleu(answer, wanted)},
                prompt=shown_end(prompt),
                answer=shown(answer),
                wanted=shown(wanted),
            )
        )
    return CellResult([Measure(name=MEASURE, value=mean_of(items, MEASURE), unit="points")], items)


def first_line(text: str) -> str:
    """The first line of a reply that is not empty, after its thoughts."""
    from teacher_cache.generated.verification_chain import THOUGHT_END

    return next((line.strip() for line in text.rpartition(THOUGHT_END)[2].splitlines() if line.strip()), "")


CODE_SUMMARIES = TaskKind(check, data_digests, run, used_programs, used_backends, continues=True)
