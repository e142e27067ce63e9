"""Items of a task from a JSONL file of the user, also compressed by gzip."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar, cast

from pydantic import BaseModel

from schemas.errors import UserError
from schemas.failures import failure
from schemas.load import parse_json
from schemas.regular_files import open_regular

MAX_LINE_BYTES = 256 << 20
MAX_ITEMS = 10_000_000
GZIP = b"\x1f\x8b"
Item = TypeVar("Item", bound=BaseModel)


def read_items(path: str, model: type[Item], limit: int | None = None) -> list[Item]:
    """The first items of a file, all by default. Raises UserError, naming the line, if one is not as it must be."""
    items: list[Item] = []
    try:
        with _opened(path) as file:
            number = 0
            while (limit is None or len(items) < limit) and (line := file.readline(MAX_LINE_BYTES + 1)):
                number += 1
                if len(line) > MAX_LINE_BYTES or len(items) == MAX_ITEMS:
                    raise UserError(
                        f"{path}: line {number}: more than {MAX_LINE_BYTES} bytes, or {MAX_ITEMS} items, are too many"
                    )
                if line.strip():
                    items.append(parse_json(model, line, f"{path}: line {number}"))
    except (OSError, EOFError, ValueError) as error:
        raise failure(error, f"{path}: cannot be read") from None
    if not items:
        raise UserError(f"{path}: holds no item; wanted JSON, an item a line")
    return items


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    with open_regular(Path(path)) as file:
        compressed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if compressed:
            with gzip.open(file) as plain:
                yield cast(IO[bytes], plain)
        else:
            yield io.BufferedReader(file)


def unique(names: list[str], path: str) -> list[str]:
    """``names`` of items. Raises UserError if one is there twice: items of models are paired by it."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{path}: {name!r} is there twice; give each item its own")
        seen.add(name)
    return names
