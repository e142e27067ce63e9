"""Records to rows of files, and back."""

import json
from collections.abc import Sequence
from dataclasses import replace

from teacher_cache.corpus.curated_records import content_of, flags_json, row_of
from teacher_cache.corpus.documents import Document
from teacher_cache.curated.curated_place import CuratedRow
from teacher_cache.curation.record import ROLES, Record, of_document, of_reply


def to_row(record: Record, step: str = "", reason: str = "") -> CuratedRow:
    """The row of a record; ``step`` and ``reason``: why it left. Raises BadRecord if it holds what JSON cannot."""
    row = row_of(record.content, record.number, record.source, record.n_tokens, flags_json(record.flags))
    return replace(row, step=step, reason=reason) if step else row


def from_row(row: CuratedRow, where: str, roles: Sequence[str] = ROLES) -> Record:
    """The record of a row; ``roles``: whose messages are learned. Raises CorruptCacheError."""
    content = content_of(row, where)
    if isinstance(content, Document):
        record = of_document(content, row.number, row.source, roles)
    else:
        record = of_reply(content, row.number, row.source)
    return replace(record, n_tokens=row.n_tokens, flags=json.loads(row.flags))
