"""Reduce what vLLM prints when a model cannot be loaded or run, several screens, to one line."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from teacher_cache.logs import shows_details

MAX_CHARACTERS = 400  # of a reason


class _Causes(logging.Handler):
    """Keeps the exception of the last log record that has one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.last = record.exc_info[1]


@contextmanager
def causes() -> Iterator[_Causes]:
    """Collect exceptions that vLLM logs in this process, for ``reason``; its log is shown only with ``--verbose``."""
    logger, handler = logging.getLogger("vllm"), _Causes()
    before = logger.handlers
    logger.handlers = [*(before if shows_details() else []), handler]
    try:
        yield handler
    finally:
        logger.handlers = before


def reason(error: BaseException, found: _Causes, batch: str = "engine.max_batch_tokens") -> str:
    """The first informative line of ``error``, or of the logged exception if ``error`` refers to the logs.

    batch: the setting that takes less memory where it is lower.
    """
    if "logs" in str(error) and found.last is not None:
        error = found.last
    text = str(error).strip()
    validation = re.search(r"(?:Value|Assertion) error, (.*?)(?: \[type=|$)", text, re.DOTALL)
    line, _, rest = (validation[1] if validation else text).strip().partition("\n")
    if line.endswith(":"):  # a heading
        line += " " + rest.strip().partition("\n")[0]
    line = line.strip()[:MAX_CHARACTERS]
    line = line if line and not isinstance(error, KeyError) else f"{type(error).__name__}: {line}"
    if re.search(r"out of memory|KV cache|available memory", text, re.IGNORECASE):
        line = line.rstrip(".") + f"; set {batch} lower, or engine.tensor_parallel higher"
    return line
