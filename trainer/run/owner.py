"""Exclusive use of an output folder: rank 0 holds its lease for all ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import UserError
from teacher_cache.shards.lease import whole_place
from teacher_cache.shards.storage import Storage

Fence = Callable[[], None]
"""Raises ConflictError if the lease was lost; call it before committing anything."""


@contextmanager
def only_run_in(output: str, command: str, is_first: bool = True) -> Iterator[Fence]:
    """Hold the lease of ``output`` within the block. Raises ConflictError that names the other run."""
    if "://" in output:
        raise UserError(f"output: {output}: is a URL, `{command}` writes to folders only; give it one")
    if not is_first:
        yield lambda: None
        return
    with whole_place(Storage(str(Path(output).absolute())), command) as lease:
        yield lease.check
