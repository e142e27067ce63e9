"""A JSON file that names the sha256 of its own text."""

import hashlib
from typing import TYPE_CHECKING

from pydantic import BaseModel

from schemas.errors import CorruptCacheError


class SealedFile(BaseModel):
    """Adds the text of the file to a model with a field ``sha256``."""

    if TYPE_CHECKING:
        sha256: str

    def to_json(self) -> str:
        """The file's text, with its sha256: indented JSON and a final newline; equal models give equal bytes."""
        return self._text(self.text_sha256())

    def text_sha256(self) -> str:
        """What ``sha256`` must be, the digest of the text in which it is empty: hex."""
        return hashlib.sha256(self._text("").encode()).hexdigest()

    def check_seal(self, where: str) -> None:
        """Raise CorruptCacheError unless the ``sha256`` that was read at ``where`` is that of the text."""
        if self.sha256 != self.text_sha256():
            raise CorruptCacheError(f"{where}: its sha256 is not that of its content; restore the file")

    def _text(self, sha256: str) -> str:
        return self.model_copy(update={"sha256": sha256}).model_dump_json(indent=1) + "\n"
