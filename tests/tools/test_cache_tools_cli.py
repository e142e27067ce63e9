"""Every command of the three programs has one look: help with two examples that hold, JSON, details on request."""

import shlex
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from teacher_cache.teacher_cache_cli import main as teacher_cache
from tools.cache_tools_cli import main
from trainer.train_student_cli import main as train_student

GROUPS = {"cache-tools": main, "teacher-cache": teacher_cache, "train-student": train_student}


def command_lines() -> Iterator[tuple[str, list[str]]]:
    for name, group in GROUPS.items():
        yield name, []
        yield from ((name, [own]) for own, command in group.commands.items() if not command.hidden)


def examples_of(group: str, arguments: list[str]) -> tuple[str, ...]:
    command = GROUPS[group].commands[arguments[0]] if arguments else GROUPS[group]
    return command.examples  # type: ignore[attr-defined]


@pytest.mark.parametrize(("group", "arguments"), command_lines())
def test_every_command_has_help(group: str, arguments: list[str]) -> None:
    short, long = (CliRunner().invoke(GROUPS[group], [*arguments, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.stdout == long.stdout
    assert short.stdout.startswith("Usage: ")
    assert "--verbose" in short.stdout
    assert ("--version" in short.stdout) is not bool(arguments)
    assert all(f"\n  {example}\n" in short.stdout for example in examples_of(group, arguments))


@pytest.mark.parametrize(("group", "arguments"), command_lines())
def test_every_command_has_two_valid_examples(group: str, arguments: list[str]) -> None:
    """Their options are there, their values are of the right type, and no argument is missing."""
    examples = examples_of(group, arguments)
    assert len(set(examples)) == 2
    for example in examples:
        program, name, *rest = shlex.split(example)
        assert [program, name][: 1 + len(arguments)] == [group, *arguments]
        GROUPS[program].commands[name].make_context(name, rest)


@pytest.mark.parametrize(("group", "arguments"), [line for line in command_lines() if line[1]])
def test_a_command_has_json(group: str, arguments: list[str]) -> None:
    command = GROUPS[group].commands[arguments[0]]
    assert [option.name for option in command.params if "--json" in option.opts] == ["as_json"]


@pytest.mark.parametrize("group", GROUPS)
def test_no_summary_in_the_list_of_commands_is_cut(group: str) -> None:
    assert "..." not in CliRunner().invoke(GROUPS[group], ["-h"]).stdout.partition("Commands:")[2]
