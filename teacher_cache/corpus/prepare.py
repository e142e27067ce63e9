"""Prepare documents for rendering and tokenization: clean, filter, deduplicate."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from teacher_cache.corpus.clean import clean_text
from teacher_cache.corpus.documents import BadRecord, Document
from teacher_cache.corpus.message_forms import is_blank, trained

_HASHED_CHARACTERS = 1 << 20
_SURROGATE = re.compile("[\ud800-\udfff]")


def cleaned(document: Document) -> Document:
    """The document with every text in it cleaned."""
    if document.messages is None:
        if not document.prompt_chars:
            text = clean_text(document.text)
            return document if text is document.text else document._replace(text=text)
        prompt = clean_text(document.text[: document.prompt_chars])
        text = prompt + clean_text(document.text[document.prompt_chars :])
        return document if text == document.text else document._replace(text=text, prompt_chars=len(prompt))
    return document._replace(
        messages=_cleaned_value(document.messages),
        tools=_cleaned_value(document.tools),
        documents=_cleaned_value(document.documents),
        template_kwargs=_cleaned_value(document.template_kwargs),
    )


def without_prefix(document: Document, prefix: str) -> Document:
    """A plain text without a leading ``prefix``: the BOS token, which the tokenizer prepends anyway."""
    if not prefix or not document.text.startswith(prefix):
        return document
    rest = max(0, document.prompt_chars - len(prefix))
    return document._replace(text=document.text[len(prefix) :], prompt_chars=rest)


def reason_to_skip(document: Document, roles: Sequence[str]) -> str | None:
    """The ``CorpusCounts`` field of a document that yields no sample; None if it may yield one. Raises BadRecord."""
    if document.messages is None:
        return None if document.text.strip() else "empty"
    replies = trained(document.messages, roles, document.where)
    if all(is_blank(document.messages[number]) for number in replies or range(len(document.messages))):
        return "empty"
    return None if replies else "no_reply"


def digest(document: Document) -> bytes:
    """128-bit content hash; a chat never collides with a plain text by construction."""
    if document.messages is not None:
        extras = [extra for extra in (document.tools, document.documents, document.template_kwargs) if extra]
        kind, text = "c", json.dumps([document.messages, *extras], sort_keys=True, default=str)
    else:
        kind, text = f"p{document.prompt_chars} " if document.prompt_chars else "t", document.text
    if len(text) <= _HASHED_CHARACTERS:
        return xxhash.xxh3_128_digest((kind + text).encode("utf-8", "surrogatepass"))
    hashed = xxhash.xxh3_128(kind.encode())
    for begin in range(0, len(text), _HASHED_CHARACTERS):  # no second copy of a huge text
        hashed.update(text[begin : begin + _HASHED_CHARACTERS].encode("utf-8", "surrogatepass"))
    return hashed.digest()


def check_encodable(text: str, where: str) -> None:
    """Raise BadRecord if ``text`` cannot be encoded as UTF-8."""
    if lone := None if text.isascii() else _SURROGATE.search(text):
        raise BadRecord(
            f"{where}: lone surrogate \\u{ord(lone[0]):04x} in the text, which UTF-8 cannot encode; "
            "set corpus.clean: true to remove it"
        )


def _cleaned_value(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_cleaned_value(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _cleaned_value(item) for key, item in value.items()}
    return value
