"""What files say of problems, found by a record's prompt: a known answer, tests."""

from collections.abc import Mapping
from typing import Any

import xxhash

from schemas.curate_reasoning import ProblemsConfig
from schemas.errors import UserError
from teacher_cache.corpus.clean import clean_text
from teacher_cache.corpus.documents import BadRecord, brief
from teacher_cache.corpus.message_forms import texts
from teacher_cache.corpus.sources import read_fields
from teacher_cache.curation.record import Record

MAX_PROBLEMS = 1 << 22


class KnownProblems:
    """One field of each problem, by what the user asks."""

    def __init__(self, settings: ProblemsConfig, field: str, key: str) -> None:
        """Read the files. Raises UserError, naming the setting ``key``, for what is no text, or said in two ways."""
        self._found: dict[bytes, str] = {}
        for record in read_fields(settings.as_source(), key):
            if isinstance(record, BadRecord):
                raise record
            if len(self._found) == MAX_PROBLEMS:
                raise UserError(f"{key}: more than {MAX_PROBLEMS} problems; use those of the records only")
            _, place, fields = record
            prompt, value = (self._text(fields, name, place, key) for name in (settings.prompt, field))
            if self._found.setdefault(_key(prompt), value) != value:
                raise UserError(f"{key}: {place}: another `{field}` than before for the same `{settings.prompt}`")

    def _text(self, fields: Mapping[str, Any], name: str, place: str, key: str) -> str:
        value = fields.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise UserError(f"{key}: {place}: `{name}` is {brief(value)}, wanted a text; name another field")
        return value

    def of(self, record: Record) -> str | None:
        """The field of the problem that a record is about; None if it is about none of them."""
        return self._found.get(_key(asked(record)))


def asked(record: Record) -> str:
    """What the user asks last; of a record that is no chat, its prompt."""
    for message in reversed(record.messages or []):
        if message["role"] == "user":
            return "\n".join(text for _, text in texts(message))
    return record.prompt


def _key(prompt: str) -> bytes:
    return xxhash.xxh3_128_digest(" ".join(clean_text(prompt).split()).encode("utf-8", "replace"))
