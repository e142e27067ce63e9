import re
import time

import click
import pytest
from click.testing import CliRunner

from schemas.errors import CorruptCacheError, UserError
from teacher_cache.command import progress, set_option, show
from teacher_cache.program import Program


@click.group(cls=Program)
def main() -> None:
    """A program."""


@main.command()
@click.argument("kind")
@set_option
def command(kind: str, overrides: tuple[str, ...]) -> None:
    if kind == "user":
        raise UserError("a file:\n  is  wrong")
    if kind == "corrupt":
        raise CorruptCacheError("shard-000000.json: broken")
    click.echo(",".join(overrides))


def test_a_user_error_is_one_line_and_status_2() -> None:
    result = CliRunner().invoke(main, ["command", "user"])
    assert (result.exit_code, result.stderr) == (2, "error: a file: is wrong\n")


def test_a_corrupt_cache_is_status_3() -> None:
    result = CliRunner().invoke(main, ["command", "corrupt"])
    assert (result.exit_code, result.stderr) == (3, "error: shard-000000.json: broken\n")


def test_overrides_come_in_order() -> None:
    result = CliRunner().invoke(main, ["command", "fine", "--set", "a=1", "--set", "b.c=2"])
    assert (result.exit_code, result.stdout) == (0, "a=1,b.c=2\n")


DIGEST = "0123456789abcdef" * 4


def test_a_table_that_is_piped_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is cut at 80 columns, and nothing in it is taken for markup or obeyed by a terminal."""
    show({"digests": [DIGEST] * 5, "licence": "[/] [red]all rights\n\x1b[2J", "share": 0.25}, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert str([DIGEST] * 5) in lines[3]
    assert "[/] [red]all rights\\n\\x1b[2J" in lines[4]
    assert "0.25" in lines[5]


def test_a_table_on_a_terminal_wraps_and_loses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    show({"digest": DIGEST}, as_json=False)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 40
    assert DIGEST in "".join(re.findall(r"[0-9a-f]{4,}", " ".join(lines)))


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_shown_before_the_first_update(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a teacher loads, say; where there is no terminal, nothing is printed."""
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("loading the teacher") as advance:
        time.sleep(0.2)
        advance(3, 1200)
        time.sleep(0.2)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert ("loading the teacher" in shown) is is_terminal
    assert ("3 of 1,200" in shown) is is_terminal
