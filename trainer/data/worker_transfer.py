"""Transfer batches from worker processes: in shared memory, or through a pipe where there is no room.

torch serialises a batch in the feeder thread of the worker's queue. A failure there (no room in /dev/shm, no file
handle) is printed and lost, and training waits for ever. Here it is serialised before the queue: all tensors of a batch
in one block of shared memory, which takes one handle, or as bytes, at a third of the speed.
"""

import errno
import logging
import multiprocessing
import os
import resource
import signal
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from schemas.errors import MachineError, UserError

logger = logging.getLogger(__name__)
Batch = dict[str, torch.Tensor]
Layout = list[tuple[str, torch.dtype, torch.Size, int]]  # name, type, shape, first byte

WORKERS_START_BY = "spawn"  # a forked copy of the reader would wait for threads that were not forked
PATIENCE = 1800  # seconds to wait for a batch; reads from stores time out earlier
SHARED = "/dev/shm"
ALIGNMENT = 16
SEMAPHORES, SEMAPHORES_A_WORKER = 8, 3  # that torch's DataLoader creates; each takes a page of /dev/shm
HANDLES, HANDLES_A_WORKER = 24, 4  # its pipes, and the files and connections of a reader


class Sender:
    """Collate function: ``__getitems__`` has made the batch; in a worker it is serialised here."""

    def __init__(self, shares_memory: bool) -> None:
        self._shares_memory = shares_memory

    def __call__(self, batch: Any) -> Any:
        """The batch itself in the main process, else a parcel that unpickles to it."""
        return batch if get_worker_info() is None else _Parcel(batch, self._shares_memory)


class _Parcel:
    """A serialised batch; unpickling it gives the batch. What is not a tensor is pickled beside the block."""

    def __init__(self, batch: dict[str, Any], shares_memory: bool) -> None:
        others = {name: value for name, value in batch.items() if not isinstance(value, torch.Tensor)}
        batch = {name: value for name, value in batch.items() if name not in others}
        layout, size = _layout(batch)
        content: bytes | np.ndarray | None = _in_shared_memory(batch, layout, size) if shares_memory else None
        if content is None:
            content = _filled(torch.empty(size, dtype=torch.uint8), batch, layout).numpy()
        self._parts = layout, content, others

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, self._parts


def _layout(batch: Batch) -> tuple[Layout, int]:
    """Offset of each tensor in one block, and the block's size; bytes."""
    layout, size = [], 0
    for name, tensor in batch.items():
        layout.append((name, tensor.dtype, tensor.shape, size))
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return layout, size


def _in_shared_memory(batch: Batch, layout: Layout, size: int) -> bytes | None:
    """Pickle of a block in shared memory; None if there is no room, or no handle."""
    try:
        storage = torch.UntypedStorage._new_shared(size)
        block = _filled(torch.empty(0, dtype=torch.uint8).set_(storage), batch, layout)
        return bytes(ForkingPickler.dumps(block))
    except (RuntimeError, OSError) as error:
        logger.debug("a batch of %d bytes goes through the pipe: %s", size, error)
        return None


def _filled(block: torch.Tensor, batch: Batch, layout: Layout) -> torch.Tensor:
    for name, place in _views(block, layout).items():
        place.copy_(batch[name])
    return block


def _views(block: torch.Tensor, layout: Layout) -> Batch:
    return {
        name: block[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
        for name, dtype, shape, start in layout
    }


def _unpacked(layout: Layout, content: bytes | np.ndarray, others: dict[str, Any]) -> dict[str, Any]:
    block = ForkingPickler.loads(content) if isinstance(content, bytes) else torch.from_numpy(content)
    return _views(block, layout) | others


def handle_limit() -> int:
    """Files and connections that this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def shares_memory(num_workers: int, batches_held: int) -> bool:
    """Whether there are enough handles for ``batches_held`` batches in shared memory at a time."""
    return handle_limit() // 2 >= HANDLES + HANDLES_A_WORKER * num_workers + batches_held


def check_workers(num_workers: int) -> None:
    """Raise UserError unless this machine has the handles and semaphores for so many worker processes.

    They are allocated on trial, as torch's DataLoader does not clean up when it fails half-way.
    """
    if num_workers == 0:
        return
    context = multiprocessing.get_context(WORKERS_START_BY)
    handles: list[int] = []
    try:
        for _ in range((HANDLES + HANDLES_A_WORKER * num_workers) // 2):
            handles += os.pipe()
        os.close(handles.pop())  # for what follows
        os.close(handles.pop())
        semaphores = [context.Semaphore() for _ in range(SEMAPHORES + SEMAPHORES_A_WORKER * num_workers)]
        del semaphores
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise worker_trouble(error, num_workers) or error from None
        raise _no_room(num_workers, error) from None
    finally:
        for handle in handles:
            os.close(handle)


def worker_trouble(error: BaseException, num_workers: int) -> UserError | None:
    """A failure of the DataLoader as an error that says what to do; None if the error has another cause."""
    text = str(error)
    if (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)) or "Too many open files" in text:
        return MachineError(
            f"data.num_workers: {num_workers}: too many open files, the limit is {handle_limit()}; raise it (ulimit -n "
            "4096), or set data.num_workers to 0"
        )
    if "shared memory" in text or "Bus error" in text:
        return _no_room(num_workers, error)
    if text.startswith("DataLoader timed out"):
        return MachineError(
            f"data.num_workers: {num_workers}: no batch came from a worker process for {PATIENCE} seconds; check "
            f"whether it is stopped and whether {SHARED} is full; with data.num_workers = 0 the main process decodes"
        )
    if text.startswith("DataLoader worker") or isinstance(error, ConnectionError | EOFError):
        return UserError(
            f"data.num_workers: a worker process was killed ({error}); the same command continues from the newest "
            "checkpoint; with data.num_workers = 0 the main process decodes"
        )
    return None


def _no_room(num_workers: int, error: BaseException) -> UserError:
    return MachineError(
        f"data.num_workers: {num_workers}: worker processes need more room in {SHARED}{_room()} ({error}); start the "
        "container with a larger one (docker run --shm-size=1g), or set data.num_workers to 0"
    )


def _room() -> str:
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return ""
    return (
        f", which has {found.f_bavail * found.f_frsize // 1024} of {found.f_blocks * found.f_frsize // 1024} KiB free"
    )


def leave_interrupts_to_main(worker: int) -> None:
    """Ignore Ctrl-C in a worker process: it reaches the whole group, but only the main process handles it.

    SIGTERM keeps its default, since the main process ends its workers with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
