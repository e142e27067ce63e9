"""The recipe in miniature: from prompts to a page that says which student is better, with commands that users have.

Two teachers answer the prompts, a pyramid is curated from their replies, each teacher reads it once, students learn
with all four losses from the one's cache or the other's, one has another tokenizer, one has weights of three bits, and
a matrix compares them. Every command continues by itself what was interrupted: run the recipe again, and it ends with
the same page.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.support.recipe_student import OTHER
from benchmarks.support.students import options
from trainer.run.part_process import PartFailed, PartProcesses

FOLDER = Path("runs/recipe")
CONFIGS = Path("configs/recipe")
PAGE = FOLDER / "matrix/matrix.html"
STUDENTS = FOLDER / "students"
START = STUDENTS / "student-init"  # all students begin with these weights
LIGHT, LIGHT_CACHE = FOLDER / "light/final", FOLDER / "light/cache"
SMALL = {  # `--small`: that every command works, no more
    "generate.yaml": (
        *(f"prompts.sources.{n}.limit={limit}" for n, limit in enumerate((8, 4, 2))),
        "layers.reasoning.samples=2",
        "output.replies_per_shard=8",
    ),
    "pyramid.yaml": ("steps=[{step: deduplicate}, {step: length, min_tokens: 8}]",),  # too few for a mix
    "cache.yaml": ("corpus.sources.0.limit=12", "output.tokens_per_shard=512"),
    "healing.yaml": ("loop.max_steps=3", "loop.save_every=2"),
    "train.yaml": ("loop.max_steps=3", "loop.save_every=2"),
    "matrix.yaml": tuple(f"tasks.{n}.limit={limit}" for n, limit in enumerate((4, 2, 4))),
}


@dataclass(frozen=True)
class Step:
    """A command, what it is for, and how many minutes it takes on two cores."""

    title: str
    minutes: float
    command: tuple[str, ...]
    check: tuple[str, ...] | None = None  # says what the command will do, in numbers; writes nothing

    @property
    def shown(self) -> str:
        """As it is typed."""
        return shlex.join(self.command)


class Recipe:
    """The steps of the recipe, with changes to its configurations, by their file."""

    def __init__(self, changes: Mapping[str, tuple[str, ...]]) -> None:
        self.changes = changes

    def of(self, program: str, part: str, config: str, *changes: str) -> tuple[str, ...]:
        """A command with its configuration and what is different from it."""
        return (program, part, str(CONFIGS / config), *options((*self.changes.get(config, ()), *changes)))

    def teacher(self, title: str, minutes: float, part: str, config: str, *changes: str) -> Step:
        """A step of ``teacher-cache``, with the check that goes before it."""
        command = self.of("teacher-cache", part, config, *changes)
        check = self.of("teacher-cache", "plan" if part == "run" else part, config, *changes)
        return Step(title, minutes, command, (*check, "--dry-run"))

    def student(self, title: str, minutes: float, name: str, *changes: str, start: Path = START) -> Step:
        """The training of one student."""
        changes = (f"student={{checkpoint: {start}}}", f"output={STUDENTS / name}", *changes)
        return Step(title, minutes, self.of("train-student", "run", "train.yaml", *changes))

    def steps(self) -> list[Step]:
        """All of them, in their order."""
        logits_alone = ("capture.hidden=null", "capture.attention=null")
        own = f"corpus.sources=[{{path: {FOLDER / 'heavy/replies'}, format: generated}}]"
        healing = (own, f"output.path={FOLDER / 'healing/cache'}", *logits_alone)
        human = f"corpus.sources=[{{path: {FOLDER / 'held-out/chats.jsonl'}, format: jsonl}}]"
        held_out = (human, f"output.path={FOLDER / 'held-out/cache'}", *logits_alone)
        light_replies = (f"generator.path={LIGHT}", f"output.path={FOLDER / 'light/replies'}")
        by_light = (f"teacher.path={LIGHT}", f"output.path={LIGHT_CACHE}")
        of_light = (f"data.cache={LIGHT_CACHE}",)
        other = ("data.align=classes", "losses.lhsm=null", "losses.apc=null")  # these two compare token by token
        few_bits = ("quantization={bits: 3, group_size: 64, check: false}",)
        matrix = self.of("train-student", "matrix", "matrix.yaml")
        return [
            Step("the heavy teacher, prompts, held-out texts", 1, python("recipe_data")),
            self.teacher("the heavy teacher replies", 5, "generate", "generate.yaml"),
            self.teacher("it reads its replies", 2, "run", "cache.yaml", *healing),
            Step("the light teacher: 24 of 30 layers, healed", 8, self.of("train-student", "run", "healing.yaml")),
            self.teacher("the light teacher replies", 5, "generate", "generate.yaml", *light_replies),
            self.teacher("a pyramid of the replies of both", 1, "curate", "pyramid.yaml"),
            self.teacher("the heavy teacher reads it", 3, "run", "cache.yaml"),
            self.teacher("the light teacher reads it", 3, "run", "cache.yaml", *by_light),
            self.teacher("the heavy teacher reads held-out text", 1.5, "run", "cache.yaml", *held_out),
            Step("the students' first weights: 16 of 30 layers", 0.5, self.of("train-student", "init", "train.yaml")),
            self.student("a student of the heavy teacher", 7, "heavy"),
            self.student("a student of the light teacher", 7, "light", *of_light),
            Step("first weights for another tokenizer", 0.5, python("recipe_student")),
            self.student("a student with another tokenizer", 7, "other-tokenizer", *other, start=OTHER),
            self.student("a student under three bits", 9, "three-bits", *few_bits),
            Step("all of them on all tasks", 20, matrix, (*matrix, "--dry-run")),
        ]


def python(module: str) -> tuple[str, ...]:
    """A module of ``benchmarks.support`` as a command."""
    return ("python", "-m", f"benchmarks.support.{module}")


def main() -> int:
    """Run all steps, or show them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe", description=str(__doc__).splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="show the commands and what they take, run none")
    parser.add_argument("--small", action="store_true", help="very little of everything, to see that it works")
    arguments = parser.parse_args()
    steps = Recipe(SMALL if arguments.small else {}).steps()
    print(f"{len(steps)} steps, about {sum(step.minutes for step in steps):.0f} minutes on two cores:")
    for number, step in enumerate(steps, start=1):
        print(f"{number:3}. {step.title}: about {step.minutes:g} min\n     $ {step.shown}")
    if arguments.dry_run:
        return 0
    start, parts = time.perf_counter(), PartProcesses()
    with parts.listening():
        for number, step in enumerate(steps, start=1):
            print(f"\n── {number}. {step.title}: about {step.minutes:g} min", flush=True)
            for command in (step.check, step.command):
                if command is not None and not run(parts, command):
                    print("stopped; `make recipe` continues there")
                    return 128 + (parts.signal_number or 0)
    print(f"\n{PAGE}, after {(time.perf_counter() - start) / 60:.0f} minutes")
    return 0


def run(parts: PartProcesses, command: tuple[str, ...]) -> bool:
    """Run a command of this environment, printed first; returns whether it came to its end.

    It is told of signals that this process gets, and does not outlive it. Raises PartFailed.
    """
    print(f"$ {shlex.join(command)}", flush=True)
    words = [sys.executable, *command[1:]] if command[0] == "python" else command
    said = parts.run(words, shlex.join(command[:3]), output=True)
    print(said or "", end="", flush=True)
    return said is not None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PartFailed as error:
        sys.exit(f"error: {error}; `make recipe` continues there")
