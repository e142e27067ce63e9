"""Records of a curated corpus: rows to documents and generated replies, and back."""

import json
from collections.abc import Iterator
from typing import NamedTuple

from pydantic_core import PydanticSerializationError

from schemas.cache_config import SourceConfig
from schemas.curated_record import DocumentContent, ReplyContent
from schemas.errors import CorruptCacheError, UserError
from schemas.load import parse_cache_file
from teacher_cache.corpus.documents import BadRecord, Document, Messages
from teacher_cache.corpus.messages import read_messages
from teacher_cache.curated.curated_place import CURATED, CuratedRow, read_curated, rows_of
from teacher_cache.generated.prompt_chat import prompt_chat, prompt_messages
from teacher_cache.generated.reply_files import Prompt, Reply
from teacher_cache.shards.storage import Storage

MAX_VALUES = 1 << 20  # of a record's JSON


class Generated(NamedTuple):
    """A generated reply and its prompt; ``chat`` is the prompt's messages, None if it is plain text."""

    prompt: Prompt
    reply: Reply
    chat: Messages | None


def with_chat(prompt: Prompt, reply: Reply, where: str) -> Generated:
    """The reply with its prompt's messages. Raises CorruptCacheError."""
    if not prompt.chat:
        return Generated(prompt, reply, None)
    return Generated(prompt, reply, prompt_messages(prompt, prompt_chat(prompt, where)))


def row_of(content: Document | Generated, number: int, source: int, n_tokens: int, flags: bytes) -> CuratedRow:
    """The row of a record that stays. Raises BadRecord if it holds what JSON cannot."""
    if isinstance(content, Generated):
        prompt, reply = content.prompt, content.reply
        rest = {name: getattr(reply, name) for name in ReplyContent.model_fields}
        return CuratedRow(
            number,
            source,
            prompt.source_id,
            prompt.layer,
            n_tokens,
            flags,
            ReplyContent(**rest).to_json(),
            prompt.prompt,
            prompt.prompt_ids,
            prompt.chat,
            reply.reply,
            reply.reply_ids,
        )
    told = {name: getattr(content, name) for name in DocumentContent.model_fields if name != "template_kwargs"}
    try:
        written = DocumentContent(**told, template_kwargs=dict(content.template_kwargs)).to_json()
    except (PydanticSerializationError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise BadRecord(f"{content.where}: the record holds what JSON cannot: {problem}") from None
    return CuratedRow(number, source, content.source_id, content.mix_layer, n_tokens, flags, written)


def content_of(row: CuratedRow, where: str) -> Document | Generated:
    """The document or generated reply of a row. Raises CorruptCacheError; ``where``: the place, for the message."""
    name = f"{where}: record {row.number} ({row.source_id})"
    if len(row.reply_ids):
        rest = parse_cache_file(ReplyContent, row.content, name, MAX_VALUES)
        prompt = Prompt(rest.key, row.source_id, row.layer, row.prompt, row.prompt_ids, row.chat)
        return with_chat(prompt, Reply(reply=row.reply, reply_ids=row.reply_ids, **rest.model_dump()), name)
    told = parse_cache_file(DocumentContent, row.content, name, MAX_VALUES)
    try:
        messages = None if told.messages is None else read_messages(told.messages, "messages", name)
    except BadRecord as error:
        raise CorruptCacheError(str(error)) from None
    return Document(
        row.source_id,
        name,
        row.layer,
        told.text,
        messages,
        told.tools,
        told.documents,
        told.template_kwargs,
        told.prompt_chars,
    )


def read_contents(source: SourceConfig, where: str, fingerprint: str | None = None) -> Iterator[Document | Generated]:
    """Yield the records of a curated corpus in order, up to the source's ``limit``.

    fingerprint: of the tokenizer's vocabulary, which must be the one that it was curated for if there are generated
    replies; None: any. Raises UserError, naming the setting ``where``, and CorruptCacheError.
    """
    storage = Storage(source.path)
    manifest = read_curated(storage, f"{where}.path")
    for read, row in enumerate(rows_of(storage, manifest.shards)):
        if read == source.limit:
            return
        if len(row.reply_ids) and fingerprint not in (None, manifest.tokenizer.fingerprint):
            raise UserError(
                f"{where}.path: {storage.where(CURATED)}: holds replies that were generated with another tokenizer "
                f"(vocabulary {manifest.tokenizer.fingerprint[:12]}…, the teacher's is {str(fingerprint)[:12]}…), so "
                "their token ids mean other tokens; use a teacher with the generator's tokenizer"
            )
        yield content_of(row, source.path)


def flags_json(flags: object) -> bytes:
    """Flags of a record as JSON; equal flags give equal bytes."""
    return json.dumps(flags, sort_keys=True, separators=(",", ":")).encode() if flags else b"{}"
