"""Files that are whole or not there."""

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write ``path`` under a temporary name, sync it, and rename it: a crash leaves the old file or the new one."""
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
