"""What a failing machine does to a run, in one line: full disks, quotas, broken disks, too many open files, lost ranks.

Libraries report the same cause in different ways: as an OSError, in the text of a RuntimeError (torch's writer), of a
SafetensorError, or as a CheckpointException around the error of each rank.
"""

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from schemas.errors import UserError

ADVICE = {
    errno.ENOSPC: "free some space there, or change `output`",
    errno.EDQUOT: "your quota there is used up: remove files, ask for more, or change `output`",
    errno.EFBIG: "files of this size are not allowed there: look at `ulimit -f` and the file system's limits",
    errno.EIO: "the disk or the file system fails: look at the kernel's log (dmesg), or change `output`",
    errno.EROFS: "the file system is read-only: remount it, or change `output`",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files: end other programs, or raise fs.file-max",
    errno.EACCES: "this user may not: look at owner and mode of the folder",
    errno.EPERM: "this user may not: look at owner and mode of the folder",
    errno.ENOMEM: "free some memory",
}
WRITER = re.compile(r"PytorchStreamWriter|inline_container|iostream error|unexpected pos")
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as Rust words it
LOST_RANK = re.compile(
    r"closed by peer|reset by peer|Broken pipe|Socket Timeout|recvValue failed|remote process exited"
)
PROBE_BYTES = 1 << 20


@contextmanager
def one_line(output: Path) -> Iterator[None]:
    """Turn what the machine does while a run goes on in ``output`` into a UserError that gives advice by its cause."""
    hook = threading.excepthook

    def leave_to_main(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):  # TensorBoard's thread: its next call in the main thread raises it
            hook(args)

    threading.excepthook = leave_to_main
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        told = described(error, output)
        if told is None:
            raise
        raise UserError(f"{told}; whole checkpoints stay, and the same command continues from them") from None
    finally:
        threading.excepthook = hook


def described(error: BaseException, output: Path) -> str | None:
    """An error of the machine with its place and what to do; None if it is of another kind."""
    failures = getattr(error, "failures", None)  # of a CheckpointException: rank -> (its error, a traceback)
    if isinstance(failures, dict) and failures:
        inner = next(iter(failures.values()))[0]
        return described(inner, output) or f"{output}: {type(inner).__name__}: {inner}"
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return _said(error.errno, error.filename or output, error.strerror or str(error).rpartition("OSError: ")[2])
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"the device's memory is full ({text.split('. ')[0]}); lower loop.micro_batch_size, or set loop.parallel"
    if in_rust := OS_ERROR.search(text):
        return _said(int(in_rust[1]), output)
    if isinstance(error, RuntimeError) and WRITER.search(text):
        return _said(_cause(output), output)
    if "Too many open files" in text:
        return _said(errno.EMFILE, output)
    if torch.distributed.is_initialized() and isinstance(error, RuntimeError | ConnectionError):
        if LOST_RANK.search(text):
            return "another process of this run has ended, its message says why"
    return None


def _said(number: int | None, place: Any, reason: str | None = None) -> str:
    place = os.fsdecode(place) if isinstance(place, bytes | str | os.PathLike) else place
    reason = reason or (os.strerror(number) if number else "it cannot be written")
    return f"{place}: {reason}" + (f"; {ADVICE[number]}" if number in ADVICE else "")


def _cause(folder: Path) -> int | None:
    """Why a file could not be written to ``folder``: torch's writer does not say."""
    probe = folder / ".tmp-probe"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None
