"""What vLLM says when a model cannot be loaded or run, in one line instead of several screens."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from teacher_cache.logs import shows_details

LONGEST = 400  # characters of a reason that are shown


class _Causes(logging.Handler):
    """Keeps the exception of the last record that had one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.last = record.exc_info[1]


@contextmanager
def causes() -> Iterator[_Causes]:
    """Keep what vLLM logs in this process for ``reason``, and off the terminal unless details are asked for."""
    logger, handler = logging.getLogger("vllm"), _Causes()
    before = logger.handlers
    logger.handlers = [*(before if shows_details() else []), handler]
    try:
        yield handler
    finally:
        logger.handlers = before


def reason(error: BaseException, found: _Causes) -> str:
    """The first line of an exception that says something; of the one in the log where ``error`` points there."""
    if "logs" in str(error) and found.last is not None:
        error = found.last
    text = str(error).strip()
    validation = re.search(r"(?:Value|Assertion) error, (.*?)(?: \[type=|$)", text, re.DOTALL)
    line = (validation[1] if validation else text).strip().partition("\n")[0][:LONGEST]
    return line if line and not isinstance(error, KeyError) else f"{type(error).__name__}: {line}"
