"""Turn exceptions of the training loop into one-line errors, and remove incomplete checkpoints."""

import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import ConflictError, UserError
from trainer.data.worker_transfer import worker_trouble
from trainer.run.checkpoint import remove_incomplete
from trainer.run.context import RunContext


@contextmanager
def loop_errors(run: RunContext, checkpoint: Path | None) -> Iterator[None]:
    """Wrap the training loop, which resumes from ``checkpoint``: known exceptions become a UserError.

    On any exception rank 0 removes incomplete checkpoints, unless another run now owns the output folder. Another rank
    may write its part after that; the next start removes it.
    """
    try:
        with _plain_errors(checkpoint, run.config.data.num_workers):
            yield
    except ConflictError:
        raise
    except BaseException:
        if run.is_first:
            remove_incomplete(run.output)
        raise


@contextmanager
def _plain_errors(checkpoint: Path | None, num_workers: int) -> Iterator[None]:
    """Raise a UserError for failed data workers and for unsafe pickles in a checkpoint.

    A worker's own UserError is stripped of the traceback that torch puts into its message.
    """
    try:
        yield
    except UserError as error:
        _, in_worker, message = str(error).rpartition(f"{type(error).__name__}: ")
        if in_worker:
            raise type(error)(message) from None
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{checkpoint}: cannot be read: it holds more than tensors and values ({str(error).splitlines()[0]}); "
            "use a checkpoint from a trusted source, or set loop.resume to false to start over"
        ) from None
    except (RuntimeError, OSError, EOFError) as error:  # the last two: while fetching a worker's tensor
        trouble = worker_trouble(error, num_workers)
        if trouble is None or not num_workers:
            raise
        # else torch's handler raises again, anywhere, when the worker ends
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise trouble from None
