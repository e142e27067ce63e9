"""One-line errors for machine failures: full disks, quotas, broken disks, too many open files, lost ranks.

Libraries report the same cause differently: as an OSError, in the text of a RuntimeError (torch's writer) or of a
SafetensorError, or as a CheckpointException around each rank's error.
"""

import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from schemas.errors import MachineError, UserError
from schemas.failures import failure, os_error_in

GOES_ON = "complete checkpoints stay, and the same command resumes from them"
TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container|iostream error|unexpected pos")
LOST_RANK = re.compile(r"closed by peer|reset by peer|Broken pipe|Socket Timeout|recvValue failed|remote process")
FOLDER_GONE = re.compile(r"Parent directory .* does not exist")  # torch's writer, of a checkpoint that rank 0 gave up
PROBE_BYTES = 1 << 20


@contextmanager
def one_line(output: Path) -> Iterator[None]:
    """Turn machine failures within the block into a UserError with advice; ``output`` is the run's folder."""
    hook = threading.excepthook

    def leave_to_main(args: threading.ExceptHookArgs) -> None:
        if not isinstance(
            args.exc_value, OSError
        ):  # of TensorBoard's thread: its next call in the main thread raises it too
            hook(args)

    threading.excepthook = leave_to_main
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        told = as_user_error(error, output)
        if told is None:
            raise
        raise told from None
    finally:
        threading.excepthook = hook


def as_user_error(error: BaseException, output: Path) -> UserError | None:
    """Convert a machine failure to a UserError that says where and what to do; None for any other error."""
    failures = getattr(error, "failures", None)  # of a CheckpointException: rank -> (its error, a traceback)
    if isinstance(failures, dict) and failures:
        inner = next(iter(failures.values()))[0]
        return as_user_error(inner, output) or UserError(f"{output}: {type(inner).__name__}: {inner}")
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        advice = "lower loop.micro_batch_size, or set loop.gradient_checkpointing or loop.parallel: fsdp"
        return MachineError(f"the device's memory is full: {text.split('. ')[0]}; {advice}")
    if torch.distributed.is_initialized() and (
        LOST_RANK.search(text) or (torch.distributed.get_rank() > 0 and FOLDER_GONE.search(text))
    ):
        return MachineError(f"another rank of this run has ended, its message says why; {GOES_ON}")
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        place = os.fsdecode(error.filename or output) if not isinstance(error.filename, int) else output
        return failure(error, str(place), GOES_ON)
    if in_rust := os_error_in(error):
        return failure(in_rust, str(output), GOES_ON)
    if isinstance(error, RuntimeError) and TORCH_WRITER.search(text):
        number = _cause(output)
        if number is None:
            return MachineError(f"{output}: cannot be written; {GOES_ON}; check free space, quota and disk there")
        return _failed(number, output)
    if "Too many open files" in text:
        return _failed(errno.EMFILE, output)
    return None


def _failed(number: int, place: Path) -> UserError:
    return failure(OSError(number, os.strerror(number)), str(place), GOES_ON)


def _cause(folder: Path) -> int | None:
    """Return the errno of writing a small file to ``folder``, None if that works; torch's writer does not report it."""
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
