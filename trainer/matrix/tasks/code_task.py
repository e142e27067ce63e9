"""Functions that a model writes, run against tests in a sandbox: pass@k."""

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, Field, TypeAdapter

from schemas.errors import UserError
from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_cell import MatrixItem, Measure
from schemas.matrix_tasks import CodeTask
from teacher_cache.sandbox.sandboxed import function_passes, passes
from trainer.matrix.item_means import mean_of
from trainer.matrix.task_kind import CellResult, TaskKind
from trainer.matrix.tasks.asked_text import Sampling
from trainer.matrix.tasks.jsonl_items import read_items, unique
from trainer.matrix.tasks.kept_parts import KeptParts
from trainer.matrix.tasks.pass_at_k import pass_at_k
from trainer.matrix.tasks.writing_task import (
    check_engine,
    data_digests,
    shown,
    shown_end,
    used_backends,
    used_programs,
)

KEY = "isolation"


class Problem(BaseModel):
    """A problem in HumanEval's layout; other keys are not read."""

    task_id: str = Field(min_length=1)
    prompt: str
    entry_point: str = Field(pattern=r"^[A-Za-z_]\w*$")
    test: str
    canonical_solution: str = ""


class Tests(BaseModel):
    """Other tests of a problem."""

    task_id: str
    test: str


def read_problems(task: CodeTask) -> list[Problem]:
    """The problems, with the tests that are to be run. Raises UserError."""
    problems = read_items(task.data, Problem, task.limit)
    unique([problem.task_id for problem in problems], task.data)
    if task.tests is None:
        return problems
    tests = {each.task_id: each.test for each in read_items(task.tests, Tests)}
    missing = next((problem.task_id for problem in problems if problem.task_id not in tests), None)
    if missing is not None:
        raise UserError(f"{task.tests}: has no tests of {missing!r}, which is in {task.data}; give a file for it")
    return [problem.model_copy(update={"test": tests[problem.task_id]}) for problem in problems]


def check(task: CodeTask) -> None:
    """Raise UserError if something is missing: files, packages, or a machine that can keep code in a sandbox."""
    read_problems(task)
    check_engine(task)
    if task.chat and importlib.util.find_spec("markdown_it") is None:
        raise UserError("chat: true: reads code blocks with markdown-it-py, which is not installed; pip install it")
    passes("", "", task.isolation == "required", 10, KEY)


def run(task: CodeTask, model: MatrixModel, backends: Backends, folder: Path) -> CellResult:
    """Have a model write, and run what it wrote; what was done is kept in ``folder``."""
    from trainer.matrix.tasks.written_texts import written_texts

    problems = read_problems(task)
    written = written_texts(
        task,
        model,
        backends,
        [_prompt(task, problem) for problem in problems],
        [problem.task_id for problem in problems],
        sampling(task),
        folder,
    )
    programs = [
        [program(task, problem, text) for text in texts] for problem, texts in zip(problems, written, strict=True)
    ]
    verdicts = run_programs(task, problems, programs, folder)
    items = [
        MatrixItem(
            id=problem.task_id,
            scores={f"pass@{k}": pass_at_k(len(passed), sum(passed), k) for k in task.k},
            prompt=shown_end(problem.prompt),
            answer=shown(texts[0]),
            wanted=shown(problem.canonical_solution),
        )
        for problem, texts, passed in zip(problems, written, verdicts, strict=True)
    ]
    return CellResult([Measure(name=f"pass@{k}", value=mean_of(items, f"pass@{k}")) for k in task.k], items)


def sampling(task: CodeTask) -> Sampling:
    """How texts are drawn; a chat's reply has its own end."""
    from trainer.matrix.tasks.code_text import STOP

    stop = () if task.chat else STOP
    return Sampling(task.max_new_tokens, task.samples, task.temperature, task.top_p, task.seed, stop)


def _prompt(task: CodeTask, problem: Problem) -> str:
    return task.instruction.replace("{prompt}", problem.prompt.rstrip("\n")) if task.chat else problem.prompt


def program(task: CodeTask, problem: Problem, text: str) -> str:
    """The program of a text."""
    from trainer.matrix.tasks.code_text import continued, replied

    return replied(problem.prompt, text, problem.entry_point) if task.chat else continued(problem.prompt, text)


def run_programs(
    task: CodeTask, problems: Sequence[Problem], programs: Sequence[Sequence[str]], folder: Path
) -> list[list[bool]]:
    """Whether each program of each problem passes its tests; equal ones run once. Raises UserError.

    Several run at a time; verdicts on a problem are kept in ``folder`` when they are complete.
    """
    parts = KeptParts(folder, TypeAdapter(list[bool]))

    def judge(problem: Problem, own: Sequence[str]) -> list[bool]:
        asked = ["verdicts", problem.model_dump(), list(own), task.seconds, task.isolation]
        kept = parts.find(asked)
        if kept is None:
            passed = {each: _passes(task, problem, each) for each in dict.fromkeys(own)}
            kept = [passed[each] for each in own]
            parts.keep(asked, kept)
        return kept

    with ThreadPoolExecutor(task.workers) as threads:
        return list(threads.map(judge, problems, programs))


def _passes(task: CodeTask, problem: Problem, code: str) -> bool:
    function = problem.entry_point
    return function_passes(
        code,
        function,
        f"{problem.test}\ncheck({function})\n",
        problem.prompt,
        task.isolation == "required",
        task.seconds,
        f"{KEY}: {problem.task_id}",
        task.workers,
    )


def _programs(task: CodeTask) -> Sequence[str]:
    return ("python", *used_programs(task), *(["markdown-it-py"] if task.chat else []))


CODE = TaskKind(check, data_digests, run, _programs, used_backends, continues=True)
