"""Log lines of the commands on stderr, and what keeps libraries' messages and bars away from them.

Two hands are needed for libraries: levels of their loggers, which this process reads; and environment variables, which
libraries that are imported later read, and the processes that they start.
"""

import logging
import os
import sys
from typing import TextIO

from schemas.errors import printable

OURS = ("teacher_cache", "trainer", "tools")
OWN_HANDLERS = ("transformers", "huggingface_hub", "vllm", "torch", "torch._library")  # or levels, which root's is not
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
    """Writes to what is ``sys.stderr`` at the time, so that a progress bar that is up makes room."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class _OneLine(logging.Formatter):
    """One line a message, with nothing that a terminal obeys, for it quotes paths and names. Tracebacks have more."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines()
        if not (record.exc_info or record.stack_info):
            lines = [" ".join(line.strip() for line in lines)]
        return "\n".join(map(printable, lines))


def configure_logging(verbose: bool) -> None:
    """Log to stderr: our own messages from INFO, libraries' from ERROR; from DEBUG and WARNING if ``verbose``.

    What libraries warn of, a user of ours cannot change, and our bars count what theirs do.
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
    """Whether ``--verbose`` asked for what libraries have to say."""
    return logging.getLogger(OURS[0]).isEnabledFor(logging.DEBUG)
