"""Generated replies as sequences: their token ids are taken as they are, nothing is tokenized again.

Tokenizing a reply's text can give other ids than the generator drew. The text of a sequence is what its ids spell, so
byte spans are exact, also of tokens that end inside a character. Replies with a reject reason give none.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from schemas.cache_config import SourceConfig
from schemas.chat_record import ChatMessage
from schemas.errors import CorruptCacheError, UserError
from teacher_cache.corpus.token_spans import ByteTokenizer, TokenSpans
from teacher_cache.generated.generated_place import GENERATED, read_complete, replies_of
from teacher_cache.generated.prompt_chat import prompt_chat
from teacher_cache.generated.reply_files import Prompt, Reply
from teacher_cache.records import TokenSample
from teacher_cache.shards.storage import Storage


def read_ready(
    source: SourceConfig, where: str, tokenizer: ByteTokenizer, fingerprint: str, before: np.ndarray
) -> Iterator[TokenSample | None]:
    """Yield a sequence, with an empty key, for each reply of ``source`` in order; None for a rejected one.

    fingerprint: of the tokenizer's vocabulary, which must be the generator's. before: ids that the tokenizer puts
    before a text. Raises UserError, naming the setting ``where``, and CorruptCacheError.
    """
    storage = Storage(source.path)
    manifest = read_complete(storage, f"{where}.path")
    if manifest.tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"{where}.path: {storage.where(GENERATED)}: generated with another tokenizer (vocabulary "
            f"{manifest.tokenizer.fingerprint[:12]}…, the teacher's is {fingerprint[:12]}…), so its token ids mean "
            "other tokens; use a teacher with the generator's tokenizer"
        )
    for prompt, reply in islice(replies_of(storage, manifest), source.limit):
        yield None if reply.reason else ready_sample(prompt, reply, tokenizer, before, source.path)


def ready_sample(prompt: Prompt, reply: Reply, tokenizer: ByteTokenizer, before: np.ndarray, place: str) -> TokenSample:
    """The sequence of one reply, with an empty key. Raises CorruptCacheError if its ids spell no text."""
    name = f"{place}: {prompt.source_id}, reply {reply.sample}"
    n_prompt, n_reply = len(prompt.prompt_ids), len(reply.reply_ids)
    ids = np.concatenate([prompt.prompt_ids, reply.reply_ids])
    if not n_prompt or not n_reply or ids.max() >= len(tokenizer.table.length_V):
        raise CorruptCacheError(f"{name}: no prompt, no reply, or ids beyond the tokenizer's")
    skipped = 0 if prompt.chat else _shared(before, prompt.prompt_ids)
    spans = tokenizer.locate(ids[skipped:], prompt.prompt)
    try:
        text = spans.data.decode()
    except UnicodeDecodeError:
        raise CorruptCacheError(f"{name}: its ids spell no UTF-8") from None
    none = np.zeros(skipped, np.uint32)
    start, end = (np.concatenate([none, bytes_S.astype(np.uint32)]) for bytes_S in (spans.start, spans.end))
    loss_mask = np.zeros(len(ids), bool)
    loss_mask[n_prompt - 1 : -1] = True
    return TokenSample(
        key="",
        source_id=f"{prompt.source_id}/{reply.sample}",
        layer=prompt.layer,
        text=text,
        input_ids=ids.astype(np.uint32),
        loss_mask=loss_mask,
        byte_start=start,
        byte_end=end,
        chat=_chat(prompt, reply, spans, name) if prompt.chat else b"",
    )


def _shared(before: np.ndarray, ids: np.ndarray) -> int:
    """Tokens of ``before`` that ``ids`` begin with: all or none."""
    return len(before) if np.array_equal(ids[: len(before)], before) else 0


def _chat(prompt: Prompt, reply: Reply, spans: TokenSpans, name: str) -> bytes:
    """The chat's record with the reply as its last message."""
    record = prompt_chat(prompt, name)
    messages: Sequence[ChatMessage] = record.messages
    rendered = prompt.prompt.encode()
    if not spans.data.startswith(rendered):  # a normalizer rewrote the text: offsets into it mean nothing
        messages = [_without_spans(message, rendered) for message in messages]
    closed = reply.finish == "stop"
    begin, end = int(spans.start[len(prompt.prompt_ids)]), int(spans.start[-1] if closed else spans.end[-1])
    said = ChatMessage(role="assistant", learned=True, closed=closed, spans={"content": (begin, end)})
    return record.model_copy(update={"messages": [*messages, said]}).to_json()


def _without_spans(message: ChatMessage, rendered: bytes) -> ChatMessage:
    restored = message.restored(rendered)
    return ChatMessage(role=restored.pop("role"), fields=restored)
