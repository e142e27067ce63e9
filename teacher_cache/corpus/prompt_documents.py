"""Prompts from the sources of a corpus: records that end where a reply begins.

The shapes of a corpus are read, and records with a prompt alone. Replies at the end of a record are left out or
refused, as ``prompts.replies`` says.
"""

from collections.abc import Iterator
from typing import Any

from schemas.cache_config import SourceConfig
from schemas.generate_config import PromptsConfig
from teacher_cache.corpus.curated_records import read_contents
from teacher_cache.corpus.documents import BadRecord, Document
from teacher_cache.corpus.message_forms import is_blank
from teacher_cache.corpus.prepare import cleaned
from teacher_cache.corpus.shapes import prompt_shapes
from teacher_cache.corpus.sources import read_documents


def read_prompts(config: PromptsConfig) -> Iterator[Document | BadRecord]:
    """Yield the prompts of all sources in order, cleaned; bad records in their place. Raises UserError.

    An empty record gives a document without text and messages.
    """
    for number, source in enumerate(config.sources):
        for read in _read(source, f"prompts.sources.{number}"):
            if isinstance(read, BadRecord):
                yield read
                continue
            try:
                yield _prompt(cleaned(read) if config.clean else read, config, source)
            except BadRecord as error:
                yield error


def _read(source: SourceConfig, where: str) -> Iterator[Document | BadRecord]:
    if source.format != "curated":
        yield from read_documents(source, where, prompt_shapes(source))
        return
    for content in read_contents(source, where):
        if isinstance(content, Document):
            yield content
        else:
            yield BadRecord(f"{source.path}: {content.prompt.source_id}: a generated reply is no prompt")


def _prompt(document: Document, config: PromptsConfig, source: SourceConfig) -> Document:
    if document.messages is None:
        text = document.text[: document.prompt_chars] if document.prompt_chars else document.text
        if len(text) < len(document.text):
            _check_replaced(document, config)
        if not text.strip():
            return document._replace(text="", prompt_chars=0)
        if config.text == "continue":
            return document._replace(text=text, prompt_chars=0)
        return document._replace(text="", prompt_chars=0, messages=[{"role": "user", "content": text}])
    messages = list(document.messages)
    while messages and messages[-1]["role"] == "assistant":
        if not is_blank(messages.pop()):
            _check_replaced(document, config)
    if all(map(is_blank, messages)):
        return document._replace(text="", messages=None)
    return document._replace(messages=[_asked(message) for message in messages])


def _check_replaced(document: Document, config: PromptsConfig) -> None:
    if config.replies == "refuse":
        raise BadRecord(
            f"{document.where}: the record ends with a reply; set prompts.replies: replace to have the generator's in "
            "its place, or give prompts alone",
            "answered",
        )


def _asked(message: dict[str, Any]) -> dict[str, Any]:
    """The message without what says whether it is trained on: prompts are not."""
    return {key: value for key, value in message.items() if key not in ("train", "weight")}
