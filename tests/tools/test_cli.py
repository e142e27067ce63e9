"""Every command of ``cache-tools`` can be scripted and shows how it is used."""

import click
import pytest

from tools.cli import main


@pytest.mark.parametrize("command", main.commands.values(), ids=list(main.commands))
def test_a_command_has_json_and_an_example(command: click.Command) -> None:
    assert "as_json" in [option.name for option in command.params]
    assert f"Example: cache-tools {command.name} " in (command.help or "")
