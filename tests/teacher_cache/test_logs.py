"""What reaches the terminal: our own messages, a line each, and of libraries only errors, unless ``--verbose``."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import transformers

from support.commands import environment
from teacher_cache.engines.vllm_errors import causes
from teacher_cache.logs import QUIET, _OneLine, _Stderr, shows_details
from trainer.run.quiet import quiet_transformers

NOISE = """
import logging, os, subprocess, sys, warnings
from teacher_cache.logs import configure_logging
configure_logging(sys.argv[1] == "verbose")
for name in ("transformers.modeling_utils", "vllm.worker", "some.library"):
    logging.getLogger(name).warning(f"noise of {name}")
warnings.warn("noise of Python")
subprocess.run([sys.executable, "-c", "import warnings; warnings.warn('noise of a worker')"])
from tqdm import tqdm
list(tqdm([1], desc="noise of tqdm"))
logging.getLogger("teacher_cache.job").debug("a detail of ours")
logging.getLogger("teacher_cache.job").info("a message of ours")
logging.getLogger("vllm.worker").error("an error")
"""
NOISES = ["transformers.modeling_utils", "vllm.worker", "some.library", "Python", "a worker", "tqdm"]


@pytest.mark.parametrize("how", ["verbose", "quiet"])
def test_messages_of_libraries_are_kept_off_the_terminal(how: str) -> None:
    clean = {name: value for name, value in environment().items() if name not in QUIET}
    done = subprocess.run([sys.executable, "-c", NOISE, how], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a message of ours" in done.stderr
    assert "an error" in done.stderr
    assert ("a detail of ours" in done.stderr) is (how == "verbose")
    assert [what for what in NOISES if f"noise of {what}" in done.stderr] == (NOISES if how == "verbose" else [])
    if how == "quiet":
        assert len(done.stderr.splitlines()) == 2, done.stderr


def test_variables_set_by_the_user_are_kept() -> None:
    code = "from teacher_cache.logs import configure_logging; configure_logging(False); import os; "
    code += "print(os.environ['VLLM_LOGGING_LEVEL'], os.environ['PYTHONWARNINGS'])"
    asked = {**environment(), "VLLM_LOGGING_LEVEL": "DEBUG", "PYTHONPATH": os.pathsep.join(sys.path)}
    asked.pop("PYTHONWARNINGS", None)
    done = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True, text=True)
    assert done.stdout == "DEBUG ignore\n", done.stderr


def written(message: str, *values: object, error: BaseException | None = None) -> str:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("tools.x", logging.WARNING, __file__, 1, message, values, info)
    return _OneLine("%(levelname)s %(name)s: %(message)s").format(record)


def test_a_message_is_one_line_without_control_characters() -> None:
    assert written("%s: left out", "a\x1b[2J\u202eb") == r"WARNING tools.x: a\x1b[2J\u202eb: left out"
    assert written("many\n  lines\r\n\tof %s", "a\nwarning") == "WARNING tools.x: many lines of a warning"


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise ValueError("wrong\x1b[2J")
    except ValueError as error:
        lines = written("failed", error=error).splitlines()
    assert lines[0] == "WARNING tools.x: failed"
    assert lines[-1] == r"ValueError: wrong\x1b[2J"
    assert len(lines) > 2


def test_messages_go_to_the_current_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A progress bar takes its place while it is up, and a test's capture; a handler made before follows."""
    handler = _Stderr()
    handler.handle(logging.LogRecord("x", logging.INFO, __file__, 1, "first", (), None))
    kept, sys.stderr = sys.stderr, sys.stdout
    try:
        handler.handle(logging.LogRecord("x", logging.INFO, __file__, 1, "second", (), None))
    finally:
        sys.stderr = kept
    assert capsys.readouterr() == ("second\n", "first\n")


@pytest.fixture(params=[logging.DEBUG, logging.INFO], ids=["verbose", "quiet"])
def level(request: pytest.FixtureRequest) -> Iterator[int]:
    """The level that our messages are logged from."""
    ours, verbosity = logging.getLogger("teacher_cache"), transformers.logging.get_verbosity()
    before = ours.level
    ours.setLevel(request.param)
    transformers.logging.set_verbosity_warning()
    yield request.param
    ours.setLevel(before)
    transformers.logging.set_verbosity(verbosity)


def test_verbose_is_recognised_from_the_log_level(level: int) -> None:
    assert shows_details() is (level == logging.DEBUG)


def test_transformers_is_quiet_unless_details_are_shown(level: int) -> None:
    quiet_transformers()
    assert transformers.logging.get_verbosity() == (logging.WARNING if level == logging.DEBUG else logging.ERROR)


def test_vllm_is_quiet_unless_details_are_shown(level: int, capsys: pytest.CaptureFixture[str]) -> None:
    logger, handler = logging.getLogger("vllm"), _Stderr()
    logger.addHandler(handler)
    try:
        with causes():
            logger.error("an error of vLLM")
    finally:
        logger.removeHandler(handler)
    assert ("an error of vLLM" in capsys.readouterr().err) is (level == logging.DEBUG)
