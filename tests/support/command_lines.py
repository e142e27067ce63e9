"""Command lines as people type them: what they run, and whether programs, targets, options and settings exist."""

import importlib.util
import os
import re
import shlex
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import click

from schemas.cache_config import CacheConfig
from schemas.load import load_config
from schemas.matrix_config import MatrixConfig
from schemas.rounds_config import RoundsConfig
from schemas.train_config import TrainConfig
from support.commands import MODULES
from support.markdown_pages import ROOT
from teacher_cache.fleet.fleet_parts import CONFIGS

OTHERS = {"source", "pre-commit", "aws"}
VARIABLE = re.compile(r"[A-Z_]+=")
BIN = ".venv/bin/"
FROM_MAKE = ("ARGS", "JOBS", "CONFIG", "MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL")  # of the make that runs the tests


def programs(line: str) -> list[list[str]]:
    """The words of every program that a line runs: of a target of ``make`` those of its recipe."""
    words = shlex.split(line)
    while VARIABLE.match(words[0]):
        words.pop(0)
    if words[0] == "make" and words[1:] != ["setup"]:
        return [each for recipe in _recipe(words[1:]) for each in programs(recipe)]
    if words[0] == "torchrun":
        words = words[words.index("--no-python") + 1 :]
    return [[words[0].removeprefix(BIN), *words[1:]]]


def _recipe(arguments: list[str]) -> list[str]:
    """What make would run for a target that is set up. Raises CalledProcessError for a target that there is not."""
    done = ["setup", ".venv/.installed-cpu", ".venv-docs/.installed"]
    command = ["make", "-n", "-s", *[word for name in done for word in ("-o", name)], "LOCK=cpu", *arguments]
    env = {name: value for name, value in os.environ.items() if name not in FROM_MAKE}
    output = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    return [line for line in output.replace("\\\n", " ").splitlines() if line.startswith((BIN, "OMP_NUM_THREADS"))]


def check(line: str, whole: bool = True) -> None:
    """Raise ``click.UsageError``, ``UserError`` or AssertionError where something in the line does not exist.

    ``whole``: whether arguments may not be left out, as a sentence that names a command does.
    """
    for words in programs(line):
        _check(words, whole)


def _check(words: list[str], whole: bool) -> None:
    name = words[0]
    if name in MODULES:
        parse(words, whole)
    elif name in ("python", "python3") and words[1] == "-m":
        module = words[2]
        assert module == "pip" or importlib.util.find_spec(module) is not None, f"no module {module}"
    elif name in ("python", "python3"):
        assert (ROOT / words[1]).is_file(), f"no file {words[1]}"
    elif name == "pip":
        _check_packages(words[2:])
    else:
        assert name in OTHERS | {"make", "ruff", "mypy"}, f"unknown program {name}"


def _check_packages(words: list[str]) -> None:
    """What pip is to install of the project is named as ``pyproject.toml`` names it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wheel = f"{project['name'].replace('-', '_')}-{project['version']}-py3-none-any.whl"
    for word in words:
        if word.endswith(".whl"):
            assert Path(word).name == wheel, f"the wheel is called {wheel}"
        if extra := re.fullmatch(r"\.\[(\w+)\]", word):
            assert extra[1] in project["optional-dependencies"], f"no extra {extra[1]}"


def parse(words: list[str], whole: bool) -> None:
    """Check that every option of one of the project's command lines exists and has a value, and the arguments' number.

    Where the configuration is one of ``configs``, it is read with what ``--set`` changes.
    """
    command: click.Command = import_module(MODULES[words[0]]).main
    rest = words[1:]
    context = click.Context(command, info_name=words[0], **command.context_settings)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"{words[0]} has no command {name}")
        command, context = found, click.Context(found, info_name=name, parent=context, **found.context_settings)
    if isinstance(command, click.Group):
        return
    values, left, _ = command.make_parser(context).parse_args(list(rest))
    if left:
        raise click.UsageError(f"arguments that {command.name} does not take: {left}")
    arguments = [str(each.name) for each in command.params if isinstance(each, click.Argument) and each.required]
    missing = [name for name in arguments if not isinstance(values.get(name), str | tuple)]
    if missing and whole:
        raise click.UsageError(f"{command.name} lacks {missing}")
    config = values.get("config")
    if isinstance(config, str) and (ROOT / config).is_file():
        of_training = {"rounds": RoundsConfig, "matrix": MatrixConfig}.get(words[1], TrainConfig)
        of_teacher = CONFIGS.get(values.get("part") or words[1], CacheConfig)
        load_config(
            of_teacher if words[0] == "teacher-cache" else of_training,
            str(Path(ROOT / config)),
            tuple(values.get("overrides", ())),
        )
