"""One run at a time in an output folder: the first rank holds its lease for all of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import UserError
from teacher_cache.shards.lease import whole_place
from teacher_cache.shards.storage import Storage

Fence = Callable[[], None]
"""Raises ConflictError when the lease was lost: to be called before anything is committed."""


@contextmanager
def only_run_in(output: str, command: str, is_first: bool = True) -> Iterator[Fence]:
    """Be the only run that writes to ``output``. Raises ConflictError that names the other one."""
    if "://" in output:
        raise UserError(f"output: {output}: is a URL, wanted a folder; copy what a run has written when it has ended")
    if not is_first:
        yield lambda: None
        return
    with whole_place(Storage(str(Path(output).absolute())), command) as lease:
        yield lease.check
