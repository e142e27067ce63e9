"""`make recipe` with tiny models: all of its commands, one after the other, and again."""

from pathlib import Path

import pytest

from benchmarks.recipe import PAGE, SMALL, Recipe, Step
from benchmarks.support.corpus import write_chats
from benchmarks.support.recipe_data import FOLDER
from benchmarks.support.recipe_student import OTHER
from support.commands import finish, Forked
from support.other_tokenizers import other_tokenizer, write_student
from support.talking import write_prompts, write_talking_generator

ROOT = Path(__file__).parents[2]
TINY = {
    "generate.yaml": (
        "engine.kind=transformers",
        "output.replies_per_shard=10",
        "sampling.samples=4",
        "sampling.max_new_tokens=24",
    ),
    "pyramid.yaml": (
        "steps=[{step: deduplicate}, {step: mix, shares: {base: 60, code: 25, reasoning: 15}, on_deficit: shrink}]",
    ),
    "cache.yaml": ("engine.kind=transformers", "capture.keywords=[a, b, aa, ab, ba, bb]", "output.tokens_per_shard=400"),
    "healing.yaml": ("student.from_layers=[0, 1, 3]", "loop.max_steps=3", "loop.save_every=1"),
    "train.yaml": ("student.from_layers=[0, 3]", "loop.max_steps=3", "loop.save_every=1"),
    "matrix.yaml": (
        "models=[{name: untrained, folder: runs/recipe/students/student-init}, {name: three bits, folder: runs/recipe/students/three-bits/final}]",
        "pairs=null",
        "tasks=[{kind: distillation, name: held-out text, cache: runs/recipe/held-out/cache, align: border, measure: bits_per_byte}]",
    ),
}


def workplace(folder: Path) -> Path:
    """A folder with configurations, and what the steps make that need packages."""
    (folder / "configs").symlink_to(ROOT / "configs")
    place = folder / FOLDER
    for layer, count in (("base", 12), ("code", 6), ("reasoning", 4)):
        (place / "prompts").mkdir(parents=True, exist_ok=True)
        write_prompts(place / f"prompts/{layer}.jsonl", count)
    chats = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"a{n} b"}]}
        for n in range(6)
    ]
    write_chats(place / "held-out/chats.jsonl", chats)
    write_talking_generator(place / "teacher", num_hidden_layers=4)
    write_student(folder / OTHER, other_tokenizer())
    return folder


def commands(steps: list[Step]) -> list[tuple[str, ...]]:
    return [step.command for step in steps if step.command[0] != "python"]


def test_all_commands_work_and_end_with_a_page(tmp_path: Path) -> None:
    place = workplace(tmp_path)
    for command in commands(Recipe(TINY).steps()):
        import time

        t = time.time()
        done = finish(Forked(*command, cwd=place))
        print(time.time() - t, command, done.stdout[-300:])
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (place / PAGE).is_file()
