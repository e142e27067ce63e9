"""Questions about long documents, whose answers are compared with wanted ones: ROUGE-L."""

from pathlib import Path

from pydantic import BaseModel, Field, model_validator

from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_cell import MatrixItem, Measure
from schemas.matrix_tasks import LongContextTask
from trainer.matrix.item_means import mean_of
from trainer.matrix.task_kind import CellResult, TaskKind
from trainer.matrix.tasks.asked_text import Sampling
from trainer.matrix.tasks.jsonl_items import read_items, unique
from trainer.matrix.tasks.rouge_l import rouge_l
from trainer.matrix.tasks.writing_task import check_engine, data_digests, shown, shown_end, used_backends, used_programs

MEASURE = "ROUGE-L"


class Question(BaseModel):
    """An item; other keys are not read."""

    id: str = Field(min_length=1)
    wanted: str = Field(min_length=1)
    prompt: str | None = None
    document: str | None = None
    cluster: str = ""

    @model_validator(mode="after")
    def _has_one_text(self) -> "Question":
        if (self.prompt is None) == (self.document is None):
            raise ValueError("an item has either `prompt` or `document`")
        return self


def read_questions(task: LongContextTask) -> list[Question]:
    """The items. Raises UserError."""
    questions = read_items(task.data, Question, task.limit)
    unique([question.id for question in questions], task.data)
    return questions


def check(task: LongContextTask) -> None:
    """Raise UserError if a file or a package is missing."""
    read_questions(task)
    check_engine(task)


def run(task: LongContextTask, model: MatrixModel, backends: Backends, folder: Path) -> CellResult:
    """Have a model answer; what was written is kept in ``folder``."""
    from teacher_cache.generated.verification_chain import THOUGHT_END
    from trainer.matrix.tasks.written_texts import written_texts

    questions = read_questions(task)
    prompts = [_prompt(task, question) for question in questions]
    written = written_texts(
        task,
        model,
        backends,
        prompts,
        [f"{task.data}: {question.id}" for question in questions],
        Sampling(task.max_new_tokens),
        folder,
        task.max_prompt_tokens,
    )
    items = []
    for question, prompt, (text,) in zip(questions, prompts, written, strict=True):
        answer = text.rpartition(THOUGHT_END)[2].strip()
        items.append(
            MatrixItem(
                id=question.id,
                cluster=question.cluster,
                scores={MEASURE: rouge_l(answer, question.wanted)},
                prompt=shown_end(prompt),
                answer=shown(answer),
                wanted=shown(question.wanted),
            )
        )
    return CellResult([Measure(name=MEASURE, value=mean_of(items, MEASURE))], items)


def _prompt(task: LongContextTask, question: Question) -> str:
    if question.prompt is not None:
        return question.prompt
    return task.instruction.replace("{document}", question.document or "")


LONG_CONTEXT = TaskKind(check, data_digests, run, used_programs, used_backends, continues=True)
