"""The corpus as a stream of token sequences: read, clean, deduplicate, render, tokenize, split, count.

Documents are tokenized in batches for speed, so memory is bounded by one batch, the longest document, and a 128-bit
hash (some 200 bytes in Python) per distinct document and sequence. The order is always that of the sources.

Decisions: plain text gets the tokenizer's special tokens. Every piece of a split document starts with the leading ones
(BOS), because the teacher was trained on such sequences; the trailing ones (EOS) end the last piece. They have empty
byte spans. A chat's special tokens come from its template. The literal name of a special token in a document is
tokenized as that token, the tokenizer's default. Plain text longer than about a million characters is tokenized in
segments that end at newlines, so that one huge file does not exhaust memory.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import count, groupby
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import xxhash

from schemas.cache_config import CorpusConfig
from schemas.chat_record import ChatRecord
from schemas.errors import UserError
from schemas.manifest import CorpusCounts
from teacher_cache.corpus.chat import ChatRenderer
from teacher_cache.corpus.curated_records import read_contents
from teacher_cache.corpus.documents import BadRecord, Document
from teacher_cache.corpus.mask import ReplyMask, in_bytes
from teacher_cache.corpus.prepare import check_encodable, cleaned, digest, reason_to_skip, without_prefix
from teacher_cache.corpus.ready_samples import read_ready, ready_sample
from teacher_cache.corpus.said import cut_record
from teacher_cache.corpus.sources import read_documents
from teacher_cache.corpus.template import Span
from teacher_cache.corpus.token_spans import BatchSpans, ByteTokenizer, TokenSpans, added_around, cut
from teacher_cache.records import TokenSample
from teacher_cache.token_batch import TokenBatch
from teacher_cache.vocabulary import vocabulary_info

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 1 << 22
_SEGMENT_CHARACTERS = 1 << 20


class _Item(NamedTuple):
    """One tokenizer input: a document, a segment of a huge one, or the beginning of one to be truncated."""

    document: Document
    text: str
    numbers: Iterator[int]  # of the document's pieces
    first: bool = True  # segment of its document
    last: bool = True
    replies: list[Span] | None = None  # byte spans of a chat's replies
    chat: ChatRecord | None = None


class Corpus:
    """The token sequences of a corpus. Each iteration is a fresh pass: same samples, same order."""

    def __init__(self, config: CorpusConfig, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raises UserError if ``tokenizer`` is not a fast tokenizer, or its special tokens fill ``max_tokens``."""
        if not tokenizer.is_fast:
            raise UserError(
                f"teacher.path: {tokenizer.name_or_path}: {type(tokenizer).__name__} is a slow tokenizer without "
                "offsets; use a teacher folder with tokenizer.json"
            )
        self._config = config
        self._tokenizer = ByteTokenizer(tokenizer)
        self._renderer = ChatRenderer(tokenizer, config)
        self._reply_mask = ReplyMask(tokenizer)
        before, after = added_around(tokenizer)
        self._before = np.array(before, dtype=np.uint32)
        self._bos = str(tokenizer.bos_token or "") if before else ""
        self._after = np.array(after, dtype=np.uint32)
        if len(before) >= config.max_tokens:
            raise UserError(
                f"corpus.max_tokens: {config.max_tokens} leaves no room for text after the tokenizer's "
                f"{len(before)} leading special tokens"
            )
        self._segment_characters = max(_SEGMENT_CHARACTERS, 16 * config.max_tokens)
        self._all = np.ones(config.max_tokens, dtype=bool)
        self._no_bytes = np.zeros(len(before), dtype=np.uint32)  # spans of the leading special tokens
        self._counts: CorpusCounts | None = None

    @property
    def counts(self) -> CorpusCounts:
        """Document counts of the latest full pass; raises RuntimeError before the first."""
        if self._counts is None:
            raise RuntimeError("corpus counts are only available after a full pass")
        return self._counts

    def __iter__(self) -> Iterator[TokenSample]:
        """Yield the samples; raises the same errors as ``batches``."""
        for batch in self.batches():
            yield from batch.samples()

    def batches(self) -> Iterator[TokenBatch]:
        """Yield the samples in batches.

        Raises UserError for bad input where it occurs, and at the end if there was no sample.
        """
        tally: Counter[str] = Counter()
        seen: dict[bytes, int] = {}
        read: set[bytes] = set()
        for ready, group in groupby(self._inputs(), lambda each: each is None or isinstance(each, TokenSample)):
            found: Iterator[TokenBatch]
            if ready:
                found = self._ready(cast(Iterator[TokenSample | None], group), seen, tally)
            else:
                found = self._read(cast(Iterator[Document | BadRecord], group), read, seen, tally)
            for batch in found:
                tally["samples"] += len(batch)
                tally["tokens"] += len(batch.input_ids)
                tally["loss_tokens"] += int(np.count_nonzero(batch.loss_mask))
                yield batch
        counts = CorpusCounts(**{name: tally[name] for name in CorpusCounts.model_fields})
        if not counts.samples:
            dropped = counts.malformed + counts.refused + counts.reply_lost + counts.not_located
            raise UserError(
                f"corpus is empty: {counts.documents} documents read: {counts.empty} empty, "
                f"{counts.duplicates} duplicates, {counts.too_short} too short or without a reply, "
                f"{counts.no_reply} without a message by {', '.join(self._config.roles_to_train)}, "
                f"{counts.dropped_over_long} dropped as over-long, {dropped} dropped as bad records, "
                f"{counts.rejected} generated replies with a reject reason; check "
                "corpus.sources, min_tokens, max_tokens and roles_to_train"
            )
        self._counts = counts

    def _inputs(self) -> Iterator[Document | BadRecord | TokenSample | None]:
        """What the sources hold: documents, and generated replies as sequences without keys; None: a rejected one."""
        for index, source in enumerate(self._config.sources):
            where = f"corpus.sources.{index}"
            if source.format == "generated":
                yield from read_ready(source, where, self._tokenizer, self._vocabulary, self._before)
            elif source.format == "curated":
                for content in read_contents(source, where, self._vocabulary):
                    if isinstance(content, Document):
                        yield content
                    else:
                        prompt, reply, _ = content
                        yield ready_sample(prompt, reply, self._tokenizer, self._before, source.path)
            else:
                yield from read_documents(source, where)

    @cached_property
    def _vocabulary(self) -> str:
        return vocabulary_info(self._tokenizer.tokenizer).fingerprint

    def _read(
        self, documents: Iterator[Document | BadRecord], read: set[bytes], seen: dict[bytes, int], tally: Counter[str]
    ) -> Iterator[TokenBatch]:
        """The documents, tokenized in batches."""
        for items in _in_batches(self._items(documents, read, tally)):
            batch = self._batch(items, seen, tally)
            if batch is not None:
                yield batch

    def _ready(
        self, samples: Iterator[TokenSample | None], seen: dict[bytes, int], tally: Counter[str]
    ) -> Iterator[TokenBatch]:
        """Generated replies: whole, or dropped (counted)."""
        batch: list[TokenSample] = []
        for sample in samples:
            tally["documents"] += 1
            tally["rejected"] += sample is None
            kept = None if sample is None else self._with_key(sample, seen, tally)
            if kept is not None:
                batch.append(kept)
            if len(batch) == _BATCH_DOCUMENTS:
                yield TokenBatch.of(batch)
                batch = []
        if batch:
            yield TokenBatch.of(batch)

    def _with_key(self, sample: TokenSample, seen: dict[bytes, int], tally: Counter[str]) -> TokenSample | None:
        """A generated sequence with its key; None, and counted, if it is too long, too short or a duplicate."""
        key = None
        if len(sample.input_ids) > self._config.max_tokens:
            tally["dropped_over_long"] += 1
        elif len(sample.input_ids) < self._config.min_tokens:
            tally["too_short"] += 1
        else:
            key = self._key(sample.input_ids.astype("<u4", copy=False).tobytes() + sample.loss_mask.tobytes(), seen)
            tally["duplicates"] += key is None
        return None if key is None else replace(sample, key=key)

    def _items(
        self, documents: Iterator[Document | BadRecord], seen: set[bytes], tally: Counter[str]
    ) -> Iterator[_Item]:
        """Cleaned, non-empty, deduplicated documents as tokenizer inputs."""
        for read in documents:
            tally["documents"] += 1
            try:
                if isinstance(read, BadRecord):
                    raise read
                document = cleaned(read) if self._config.clean else read
                if skipped := reason_to_skip(document, self._config.roles_to_train):
                    tally[skipped] += 1
                    continue
                if self._config.deduplicate:
                    content = digest(document)
                    if content in seen:
                        tally["duplicates"] += 1
                        continue
                    seen.add(content)
                yield from self._document_items(document, tally)
            except BadRecord as error:
                if self._config.on_bad_record == "stop":
                    raise
                if not tally[error.reason]:
                    logger.warning("dropped (%s; further ones are only counted): %s", error.reason, error)
                tally[error.reason] += 1

    def _document_items(self, document: Document, tally: Counter[str]) -> Iterable[_Item]:
        if document.messages is not None:
            chat = self._renderer.render(document)
            check_encodable(chat.text, document.where)
            tally["cut_replies"] += chat.cut_replies
            return (_Item(document, chat.text, count(1), replies=in_bytes(chat.text, chat.spans), chat=chat.record),)
        document = without_prefix(document, self._bos)
        text = document.text
        check_encodable(text, document.where)
        if len(text) <= self._segment_characters:
            return (_Item(document, text, count(1)),)
        return self._segment_items(document, text)

    def _segment_items(self, document: Document, text: str) -> Iterator[_Item]:
        numbers = count(1)
        segments = _segments(text, self._segment_characters)
        if self._over_long(document) != "split":  # one sequence is all that is needed
            segments = segments[:1]
        for begin, stop in segments:
            yield _Item(document, text[begin:stop], numbers, begin == 0, stop == len(text))

    def _over_long(self, document: Document) -> str:
        """The policy beyond ``max_tokens``; it depends on a prompt, since later pieces would lack theirs."""
        has_prompt = document.messages is not None or document.prompt_chars
        return self._config.over_long_chat if has_prompt else self._config.over_long

    def _batch(self, items: list[_Item], seen: dict[bytes, int], tally: Counter[str]) -> TokenBatch | None:
        """The samples of these texts; None if there are none."""
        spans = self._tokenizer.encode_batch([item.text for item in items])
        room = self._config.max_tokens - len(self._before) - len(self._after)
        if all(map(_is_plain, items)) and spans.tokens.min() > 0 and spans.tokens.max() <= room:
            batch = self._whole(items, spans, seen, tally)
            return batch if len(batch) else None
        each = zip(items, spans.each(), strict=True)
        samples = [sample for item, one in each for sample in self._samples(item, one, seen, tally)]
        return TokenBatch.of(samples) if samples else None

    def _whole(self, items: list[_Item], spans: BatchSpans, seen: dict[bytes, int], tally: Counter[str]) -> TokenBatch:
        """Vectorized ``_samples`` for plain texts that give one sample each."""
        n_before, n_after = len(self._before), len(self._after)
        tokens_M = spans.tokens + n_before + n_after
        ends_M = np.cumsum(tokens_M)
        first_M = ends_M - tokens_M
        ids_N = np.empty(ends_M[-1], np.uint32)
        start_N, end_N = np.zeros_like(ids_N), np.zeros_like(ids_N)
        own = np.repeat(first_M + n_before - np.cumsum(spans.tokens) + spans.tokens, spans.tokens)
        own += np.arange(len(spans.ids))
        ids_N[own], start_N[own], end_N[own] = spans.ids, spans.start, spans.end
        for at, token in enumerate(self._before):
            ids_N[first_M + at] = token
        for at, token in enumerate(self._after):
            ids_N[ends_M - n_after + at] = token
            start_N[ends_M - n_after + at] = end_N[ends_M - n_after + at] = list(map(len, spans.data))
        loss_mask_N = np.ones(len(ids_N), bool)
        loss_mask_N[ends_M - 1] = False
        ids, mask = ids_N.astype("<u4", copy=False).tobytes(), loss_mask_N.tobytes()
        contents = [
            ids[4 * first : 4 * end] + mask[first:end]
            for first, end in zip(first_M.tolist(), ends_M.tolist(), strict=True)
        ]
        long_enough_M = tokens_M >= self._config.min_tokens
        keys = [
            self._key(content, seen) or "" if long_enough else ""
            for content, long_enough in zip(contents, long_enough_M.tolist(), strict=True)
        ]
        new_M = np.fromiter(map(bool, keys), bool, len(keys))
        tally["too_short"] += int(np.count_nonzero(~long_enough_M))
        tally["duplicates"] += int(np.count_nonzero(long_enough_M & ~new_M))
        batch = TokenBatch(
            keys=keys,
            source_ids=[item.document.source_id for item in items],
            layers=[item.document.mix_layer for item in items],
            texts=spans.data,
            num_tokens=tokens_M,
            input_ids=ids_N,
            loss_mask=loss_mask_N,
            byte_start=start_N,
            byte_end=end_N,
            chats=[b""] * len(items),
        )
        return batch.chosen(new_M)

    def _samples(
        self, item: _Item, spans: TokenSpans, seen: dict[bytes, int], tally: Counter[str]
    ) -> Iterator[TokenSample]:
        """Apply the over-long policy to one tokenized text and yield its samples."""
        chat = item.replies is not None
        policy = self._over_long(item.document)
        before = self._before[:0] if chat else self._before
        room = self._config.max_tokens - len(before)
        if not item.last and policy != "split" and len(spans.ids) <= room:  # the segment fits: take the whole text
            item = item._replace(text=item.document.text, last=True)
            spans = self._tokenizer.encode([item.text])[0]
        if item.last and not chat:
            spans = _with_closing(spans, self._after)
        pieces = [(0, len(spans.ids))] if 0 < len(spans.ids) <= room else cut(spans, room)
        over_long = len(pieces) > 1 or not (item.first and item.last)
        if over_long and item.first:
            tally[{"split": "split", "truncate": "truncated", "drop": "dropped_over_long"}[policy]] += 1
        if not pieces:  # the tokenizer returned no tokens
            tally["empty"] += item.first and item.last
        if over_long and policy != "split":
            pieces = pieces[:1] if policy == "truncate" else []
        learned = self._learned(item, spans)
        for begin, stop in pieces:
            number = f".{next(item.numbers)}" if over_long and policy == "split" else ""
            input_ids, text = _after(before, spans.ids[begin:stop]), _text_of(item, spans, begin, stop)
            if not (text and self._config.min_tokens <= len(input_ids) <= self._config.max_tokens):
                tally["too_short"] += 1
                continue
            loss_mask = self._all[: len(input_ids)].copy()
            loss_mask[-1] = False
            if learned is not None:
                loss_mask[:-1] = _after(np.zeros(len(before), dtype=bool), learned[begin:stop])[1:]
                if not loss_mask.any():
                    tally["too_short"] += 1
                    continue
            key = self._key(input_ids.astype("<u4", copy=False).tobytes() + loss_mask.tobytes(), seen)
            if key is None:
                tally["duplicates"] += 1
                continue
            none = self._no_bytes[: len(before)]
            yield TokenSample(
                key=key,
                source_id=item.document.source_id + number,
                layer=item.document.mix_layer,
                text=text,
                input_ids=input_ids,
                loss_mask=loss_mask,
                byte_start=_after(none, _from_piece(spans.start, spans, begin, stop)),
                byte_end=_after(none, _from_piece(spans.end, spans, begin, stop)),
                chat=_chat_of(item, begin, text),
            )

    def _learned(self, item: _Item, spans: TokenSpans) -> np.ndarray | None:
        """Mask of the tokens whose prediction is trained, bool [S]; None: all."""
        if item.replies is not None:
            return self._reply_mask(spans, item.replies)
        if not item.document.prompt_chars:
            return None
        prompt = item.document.text[: item.document.prompt_chars].encode("utf-8")
        return spans.start >= len(prompt)  # a token that straddles the prompt's end is not trained on

    def _key(self, content: bytes, seen: dict[bytes, int]) -> str | None:
        """Hash of a sample's ids and loss mask; None for a duplicate that is to be dropped."""
        digest = xxhash.xxh3_128_digest(content)
        occurrence = seen[digest] = seen.get(digest, 0) + 1
        if occurrence == 1:
            return digest.hex()
        if self._config.deduplicate:
            return None
        return xxhash.xxh3_128_hexdigest(content + occurrence.to_bytes(8, "little"))


def _is_plain(item: _Item) -> bool:
    """Whether it is a complete text, all of it trained on."""
    return item.first and item.last and item.replies is None and not item.document.prompt_chars


def _in_batches(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    """Group the items into tokenizer batches."""
    batch: list[_Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += len(item.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _after(before: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.concatenate([before, values]) if len(before) else values


def _from_piece(bytes_S: np.ndarray, spans: TokenSpans, begin: int, stop: int) -> np.ndarray:
    """Byte offsets of tokens ``[begin, stop)``, relative to the first of them: uint32."""
    if not begin:
        return bytes_S[:stop].astype(np.uint32)
    return (bytes_S[begin:stop] - spans.start[begin]).astype(np.uint32)


def _text_of(item: _Item, spans: TokenSpans, begin: int, stop: int) -> str:
    """The text of tokens ``[begin, stop)``, including adjacent bytes that no token covers."""
    if not begin and stop == len(spans.ids):
        return item.text
    first_byte = int(spans.start[begin]) if begin else 0
    last_byte = int(spans.start[stop]) if stop < len(spans.ids) else len(spans.data)
    return spans.data[first_byte:last_byte].decode("utf-8")


def _chat_of(item: _Item, begin: int, text: str) -> bytes:
    """The record, as JSON, of the piece ``text`` of a chat; nothing for other documents."""
    if item.chat is None:
        return b""
    return (cut_record(item.chat, len(text.encode())) if begin == 0 else ChatRecord(messages=[])).to_json()


def _with_closing(spans: TokenSpans, after: np.ndarray) -> TokenSpans:
    if not len(after):
        return spans
    at_end = np.full(len(after), len(spans.data), dtype=np.int64)
    return TokenSpans(
        spans.data,
        np.concatenate([spans.ids, after]),
        np.concatenate([spans.start, at_end]),
        np.concatenate([spans.end, at_end]),
    )


def _segments(text: str, size: int) -> list[Span]:
    """Consecutive character spans of at most ``size``, each ending after a newline if it has one."""
    bounds = [0]
    while len(text) - bounds[-1] > size:
        line_end = text.rfind("\n", bounds[-1], bounds[-1] + size) + 1
        bounds.append(line_end or bounds[-1] + size)
    return list(zip(bounds, [*bounds[1:], len(text)], strict=True))
