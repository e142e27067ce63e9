"""How commands look and end: options of all of them, ``~`` in arguments, signals, in one line and with their status."""

import importlib.metadata
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from support.commands import environment
from teacher_cache.program import DISTRIBUTION, Program


@click.group(cls=Program, examples=("program a b", "program a --to c"))
def main() -> None:
    """A program."""


@main.command("a", examples=("program a b", "program a ~/b --to 'c d'"))
@click.argument("place", default="b")
@click.option("--to", default="c")
def command(place: str, to: str) -> None:
    """Say two paths. And more of it."""
    click.echo(f"{place} {to} {logging.getLogger('teacher_cache').level}")


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Loggers are as they were before."""
    loggers = [logging.getLogger(name) for name in ("teacher_cache", "trainer", "tools")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize(
    ("line", "level"),
    [("a", logging.INFO), ("a --verbose", logging.DEBUG), ("--verbose a", logging.DEBUG), ("a b --verbose --to x", 10)],
)
def test_verbose_stands_before_or_after_the_command(line: str, level: int) -> None:
    result = CliRunner().invoke(main, line.split())
    assert result.stdout.split()[2] == str(level)


def test_the_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(main, ["--version"], prog_name="program")
    assert (result.exit_code, result.stdout) == (0, f"program {importlib.metadata.version(DISTRIBUTION)}\n")


def test_help_shows_the_examples_as_they_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert "\nExamples:\n  program a b\n  program a ~/b --to 'c d'\n" in CliRunner().invoke(main, ["a", "-h"]).stdout
    assert "\nExamples:\n  program a b\n  program a --to c\n" in CliRunner().invoke(main, ["-h"]).stdout


def test_a_command_outside_its_group_keeps_its_options() -> None:
    """click keeps the help option that it makes first."""
    main.commands["a"].make_context("a", [])
    assert CliRunner().invoke(main, ["a", "-h"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["~"], "HOME c"),
        (["~/x"], "HOME/x c"),
        (["--to=~/x"], "b HOME/x"),
        (["--to", "~/x"], "b HOME/x"),
        (["--to=a~/x"], "b a~/x"),
        (["x~/y"], "x~/y c"),
        (["~nobody/x"], "~nobody/x c"),
        (["s3://a/~/b"], "s3://a/~/b c"),
    ],
)
def test_a_tilde_that_the_shell_left_is_expanded(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    result = CliRunner().invoke(main, ["a", *arguments])
    assert result.stdout.rpartition(" ")[0] == said.replace("HOME", "/home/somebody")


WAITING = """
import signal, sys, time
import click
from teacher_cache.program import Program
for number in map(int, sys.argv[2:]):
    signal.signal(number, signal.SIG_IGN)
@click.group(cls=Program)
def main(): pass
@main.command()
def wait():
    try:
        print("started", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.3)
        print("cleaned up", flush=True)
main(["wait"])
"""


def start(*ignored: int) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", WAITING, "wait", *map(str, ignored)]
    variables = {**environment(), "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGTERM, 143, "stopped by SIGTERM\n"),
        (signal.SIGHUP, 129, "stopped by SIGHUP\n"),
        (signal.SIGINT, 130, "stopped by Ctrl-C\n"),
    ],
)
def test_a_signal_is_one_line_and_its_status(number: int, status: int, line: str) -> None:
    """What is under way is cleaned up, and a second signal meanwhile does not keep it from that."""
    process = start()
    process.send_signal(number)
    if number != signal.SIGINT:
        time.sleep(0.1)
        process.send_signal(number)
    said, errors = process.communicate(timeout=30)
    assert (process.returncode, said, errors) == (status, "cleaned up\n", line)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    process = start(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == "stopped by SIGTERM\n"
