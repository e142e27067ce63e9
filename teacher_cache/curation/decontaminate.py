"""Items of evaluation sets in records: they leave with the set as the reason, and the item as a flag."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from schemas.cache_config import CorpusConfig
from schemas.curate_filters import DecontaminateStep, EvaluationSet
from schemas.errors import UserError
from teacher_cache.corpus.documents import BadRecord
from teacher_cache.corpus.fingerprint import corpus_fingerprint
from teacher_cache.corpus.sources import read_fields
from teacher_cache.curation.curation_step import StepPlace
from teacher_cache.curation.ngram_index import LEAST_WORDS, ItemField, NgramIndex
from teacher_cache.curation.of_layers import LayerStep
from teacher_cache.curation.record import Record

logger = logging.getLogger(__name__)

MAX_ITEMS = 1 << 22


class Decontaminate(LayerStep):
    """Records that contain an item leave: ``contaminated: SET``; their flag ``contaminated`` names the item."""

    def __init__(self, settings: DecontaminateStep, place: StepPlace) -> None:
        super().__init__(settings.layers, place)
        self._settings, self._key = settings, f"{place.key}.sets"

    def fingerprint(self) -> str:
        """The bytes of the sets' files. Raises UserError also for sets that cannot be looked for."""
        self._index  # noqa: B018
        return corpus_fingerprint(CorpusConfig(sources=[one.as_source() for one in self._settings.sets]), self._key)

    def flagged(self, records: Sequence[Record]) -> list[Record]:
        """See ``LayerStep``."""
        found = self._index.find([f"{record.prompt}\n{record.reply}" for record in records])
        return [
            record if one is None else record.with_flags(contaminated=f"{one.set_name}: {one.item}")
            for record, one in zip(records, found, strict=True)
        ]

    def judge(self, records: Sequence[Record]) -> list[str]:
        """See ``LayerStep``."""
        flags = [str(record.flags.get("contaminated", "")) for record in records]
        return [f"contaminated: {flag.partition(':')[0]}" if flag else "" for flag in flags]

    @cached_property
    def _fields(self) -> list[ItemField]:
        return [
            field
            for number, one in enumerate(self._settings.sets)
            for field in read_items(one, f"{self._key}.{number}")
        ]

    @cached_property
    def _index(self) -> NgramIndex:
        index = NgramIndex(self._fields, self._settings.min_share)
        for one in self._settings.sets:
            places = [place for place, field in enumerate(self._fields) if field.set_name == one.name]
            items = {self._fields[place].item for place in places}
            searched = {self._fields[place].item for place in places if index.searched[place]}
            if not searched:
                raise UserError(
                    f"{self._key}: {one.name}: none of {len(items)} items can be looked for: they have fewer than "
                    f"{LEAST_WORDS} words, or nothing that is theirs alone; name other `fields`"
                )
            logger.info(
                "%s: %d items; %d cannot be looked for: too short, or nothing in them is theirs alone",
                one.name,
                len(items),
                len(items) - len(searched),
            )
        return index


def read_items(settings: EvaluationSet, where: str) -> Iterator[ItemField]:
    """Yield the fields of each item. Raises UserError for bad records and missing fields; ``where``: its key."""
    for number, record in enumerate(read_fields(settings.as_source(), where), start=1):
        if isinstance(record, BadRecord):
            raise record
        if number > MAX_ITEMS:
            raise UserError(f"{where}: more than {MAX_ITEMS} items; no evaluation set has that many")
        source_id, place, fields = record
        wanted = [*settings.fields, *([settings.id] if settings.id else [])]
        if missing := [name for name in wanted if name not in fields]:
            raise UserError(
                f"{where}: {place}: no field {missing[0]}; there are {', '.join(sorted(map(str, fields)))[:200]}; "
                "set `fields` to those to look for"
            )
        item = _text(fields[settings.id])[:200] if settings.id else source_id
        for name in settings.fields:
            yield ItemField(settings.name, item, _text(fields[name]), settings.ngram)


def _text(value: Any) -> str:
    """A value as text: those inside lists and objects are joined."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return "" if value is None else str(value)
