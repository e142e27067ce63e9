"""Rows that a part of the check reports while it runs, so that a part that is stopped keeps what it had measured."""

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.support.results import Row, as_cells

WORK = Path("runs/gpu-check")
SKIPPED = "skipped"


class Report:
    """Appends rows to a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, row: Row) -> None:
        """Write and print one row."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row), allow_nan=True) + "\n")
        print("  ", " · ".join(cell for cell in as_cells(row) if cell), flush=True)

    def skip(self, what: str, why: str) -> None:
        """Say that something was not run, and why."""
        self.add(Row(f"{what}: {why}", SKIPPED))


def read_rows(path: Path) -> list[Row]:
    """The rows that were written so far; none if there is no file."""
    if not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
