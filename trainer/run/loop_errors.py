"""What the training loop raises, in one line; and nothing half-written is left behind."""

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
    """Around the loop, which goes on from ``checkpoint``: what is raised in it becomes a UserError where that fits.

    Whatever ends the loop, no incomplete checkpoint stays in the output folder to take room, unless that is another
    run's now.
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
    """Raise what goes wrong with worker processes, or with a checkpoint's pickles, as a UserError.

    One from a worker process loses the traceback that torch puts into its message.
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
            "take a checkpoint from where you trust it, or set loop.resume to false to start over"
        ) from None
    except (RuntimeError, OSError, EOFError) as error:  # the last two: while a tensor of a worker's was fetched
        trouble = worker_trouble(error, num_workers)
        if trouble is None or not num_workers:
            raise
        # torch's handler would raise once more, at any place, when it hears of the worker's end
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise trouble from None
