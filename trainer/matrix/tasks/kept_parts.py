"""Parts of a cell's work, each kept in a file of its own, so that a killed cell continues."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from schemas.errors import UserError
from schemas.regular_files import read_file
from trainer.run.output_files import replace_text

MAX_BYTES = 1 << 30  # of a part
T = TypeVar("T")
logger = logging.getLogger(__name__)


class KeptParts(Generic[T]):
    """Values of one type by what was asked for, in the files of a folder."""

    def __init__(self, folder: Path, kind: TypeAdapter[T]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._kind = folder, kind

    def find(self, asked: object) -> T | None:
        """What was kept for ``asked``, JSON values; None if nothing was, or if the file is damaged."""
        path = self._path(asked)
        if not path.exists():
            return None
        try:
            return self._kind.validate_json(read_file(path, MAX_BYTES), strict=True)
        except (UserError, ValidationError):
            logger.warning("%s: is damaged; this part is made again", path)
            return None

    def keep(self, asked: object, value: T) -> None:
        """Keep a value; it is there whole or not at all."""
        replace_text(self._path(asked), self._kind.dump_json(value).decode())

    def _path(self, asked: object) -> Path:
        return self._folder / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}.json"
