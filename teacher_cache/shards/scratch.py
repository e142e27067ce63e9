"""Temporary folders for files to be uploaded. Creating one removes those of killed processes."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from teacher_cache.shards.holder import is_alive, this_process

_NAME = re.compile(r"teacher-cache-([0-9a-f]{16})-(\d{1,10})-(\d{1,18})-.*")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder of this process, removed with its content at the end."""
    me = this_process("", "")
    with suppress(OSError):
        _remove_abandoned(Path(tempfile.gettempdir()), me.machine)
    folder = tempfile.mkdtemp(prefix=f"teacher-cache-{me.machine}-{me.pid}-{me.started}-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path, machine: str) -> None:
    for folder in parent.glob(f"teacher-cache-{machine}-*"):
        found = _NAME.fullmatch(folder.name)
        if found and not folder.is_symlink() and not is_alive(int(found[2]), int(found[3])):
            shutil.rmtree(folder, ignore_errors=True)
