"""Logging of the commands to stderr, without the messages and progress bars of libraries.

Libraries are silenced in two ways: by the levels of their loggers in this process, and by environment variables, for
libraries that are imported later and for child processes.
"""

import logging
import os
import sys
from typing import TextIO

from schemas.errors import printable

OURS = ("teacher_cache", "trainer", "tools")
OWN_HANDLERS = ("transformers", "huggingface_hub", "vllm", "torch", "torch._library")  # with own handlers or levels
QUIET = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class _Stderr(logging.StreamHandler):
    """Writes to the current ``sys.stderr``, which a progress bar replaces so that log lines appear above it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class _OneLine(logging.Formatter):
    """One line per message (tracebacks excepted), with control characters escaped: messages quote paths and names."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines()
        if not (record.exc_info or record.stack_info):
            lines = [" ".join(line.strip() for line in lines)]
        return "\n".join(map(printable, lines))


def configure_logging(verbose: bool) -> None:
    """Log to stderr: our own messages from INFO, libraries' from ERROR; with ``verbose`` from DEBUG and WARNING.

    Users cannot act on libraries' warnings, and our own progress bars cover what libraries' bars show.
    """
    libraries = logging.WARNING if verbose else logging.ERROR
    handler = _Stderr()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=libraries)
    logging.captureWarnings(True)
    for package in OWN_HANDLERS:
        logging.getLogger(package).setLevel(libraries)
    for package in OURS:
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for results
    for name, value in ({} if verbose else QUIET).items():
        os.environ.setdefault(name, value)


def shows_details() -> bool:
    """Whether ``--verbose`` is set."""
    return logging.getLogger(OURS[0]).isEnabledFor(logging.DEBUG)
