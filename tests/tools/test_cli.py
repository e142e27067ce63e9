"""Every command of ``cache-tools`` has --json and an example."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

import teacher_cache.cli
import trainer.cli
from tools.cli import main

GROUPS = {"cache-tools": main, "teacher-cache": teacher_cache.cli.main, "train-student": trainer.cli.main}


@pytest.mark.parametrize("command", main.commands.values(), ids=list(main.commands))
def test_a_command_has_json_and_an_example(command: click.Command) -> None:
    assert "as_json" in [option.name for option in command.params]
    assert f"Example: cache-tools {command.name} " in (command.help or "")


def command_lines() -> Iterator[tuple[str, list[str]]]:
    for name, group in GROUPS.items():
        yield name, []
        yield from ((name, [command]) for command in group.commands)


@pytest.mark.parametrize(("group", "arguments"), command_lines())
def test_help_is_there_for_the_asking(group: str, arguments: list[str]) -> None:
    short, long = (CliRunner().invoke(GROUPS[group], [*arguments, option]) for option in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.stdout == long.stdout
    assert short.stdout.startswith("Usage: ")
