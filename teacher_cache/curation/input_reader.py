"""Records of the input in order: documents, generated replies, curated records. What cannot be used leaves at once."""

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePath

from schemas.cache_config import SourceConfig
from schemas.curate_config import InputConfig
from schemas.curated_manifest import SourceInfo
from schemas.errors import UserError
from teacher_cache.corpus.curated_records import Generated, read_contents, with_chat
from teacher_cache.corpus.documents import BadRecord, Document
from teacher_cache.corpus.prepare import check_encodable, cleaned, reason_to_skip
from teacher_cache.corpus.sources import read_documents
from teacher_cache.curated.curated_place import read_curated
from teacher_cache.curation.record import Record, of_document, of_reply
from teacher_cache.curation.record_rows import to_row
from teacher_cache.generated.generated_place import GENERATED, read_complete, replies_of
from teacher_cache.shards.storage import Storage

logger = logging.getLogger(__name__)
Read = tuple[Record, str]  # with the reason why it leaves; "": it stays


class InputReader:
    """The records of all sources. Each iteration is a fresh pass: same records, same numbers."""

    def __init__(self, config: InputConfig, vocabulary: str) -> None:
        """vocabulary: fingerprint of the tokenizer's.

        Raises UserError if generated or curated sources are incomplete, or have another tokenizer.
        """
        self._config, self._vocabulary = config, vocabulary
        self.layers: tuple[str, ...] = ()
        self.sources: list[SourceInfo] = []
        layers = set()
        for number, source in enumerate(config.sources):
            found, digest = self._described(source, f"input.sources.{number}")
            layers |= found
            self.sources.append(SourceInfo(name=PurePath(source.path).name, digest=digest))
        self.layers = tuple(sorted(layers))

    def _described(self, source: SourceConfig, where: str) -> tuple[set[str], str | None]:
        """Layers of a source, and the digest in its manifest."""
        if source.format == "curated":
            curated = read_curated(Storage(source.path), f"{where}.path")
            return {*curated.layers}, curated.sha256
        if source.format != "generated":
            return {source.layer}, None
        storage = Storage(source.path)
        generated = read_complete(storage, f"{where}.path")
        if generated.tokenizer.fingerprint != self._vocabulary:
            raise UserError(
                f"{where}.path: {storage.where(GENERATED)}: generated with another tokenizer (vocabulary "
                f"{generated.tokenizer.fingerprint[:12]}…, that of tokenizer.path is {self._vocabulary[:12]}…); use "
                "the generator's"
            )
        return {*generated.sampling}, generated.sha256

    def __iter__(self) -> Iterator[Read]:
        """Yield the records; raises UserError for bad input, unless ``on_bad_record`` is ``drop``."""
        number, said = 0, False
        for index, source in enumerate(self._config.sources):
            for content in self._contents(source, f"input.sources.{index}"):
                try:
                    yield self._read(content, number, index)
                except BadRecord as error:
                    if self._config.on_bad_record == "stop":
                        raise
                    if not said:
                        logger.warning("dropped (further ones are only counted): %s", error)
                    said = True
                    yield (
                        Record(number, index, Document("", "", source.layer, ""), "", "").with_flags(
                            problem=str(error).encode(errors="replace").decode()
                        ),
                        error.reason,
                    )
                number += 1

    def _contents(self, source: SourceConfig, where: str) -> Iterator[Document | Generated | BadRecord]:
        if source.format == "generated":
            storage = Storage(source.path)
            replies = replies_of(storage, read_complete(storage, f"{where}.path"))
            for prompt, reply in islice(replies, source.limit):
                yield with_chat(prompt, reply, f"{source.path}: {prompt.source_id}")
        elif source.format == "curated":
            yield from read_contents(source, where, self._vocabulary)
        else:
            yield from read_documents(source, where)

    def _read(self, content: Document | Generated | BadRecord, number: int, source: int) -> Read:
        if isinstance(content, BadRecord):
            raise content
        if isinstance(content, Generated):
            return of_reply(content, number, source), content.reply.reason
        roles = self._config.roles_to_train
        record = of_document(cleaned(content) if self._config.clean else content, number, source, roles)
        check_encodable(record.prompt + record.reply, content.where)
        if record.messages is not None:
            to_row(record)  # raises BadRecord if it cannot be written
        return record, reason_to_skip(content, roles) or ""
