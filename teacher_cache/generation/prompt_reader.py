"""Prompts as the generator reads them: rendered, tokenized, deduplicated, counted.

A key is the hash of a prompt's content, not of its rendering: the same prompt has one key under every generator. Chats
are rendered with the template's generation prompt; texts that are continued get the tokenizer's leading special tokens.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from schemas.errors import UserError
from schemas.generate_config import PromptsConfig
from schemas.generated_manifest import PromptCounts
from teacher_cache.corpus.chat import ChatRenderer
from teacher_cache.corpus.documents import BadRecord, Document
from teacher_cache.corpus.prepare import check_encodable, digest, without_prefix
from teacher_cache.corpus.prompt_documents import read_prompts
from teacher_cache.corpus.token_spans import ByteTokenizer, added_around
from teacher_cache.generated.reply_files import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
_BATCH = 1024  # prompts that are tokenized at a time


class PromptReader:
    """The prompts of a configuration. Each iteration is a fresh pass: same prompts, same order."""

    def __init__(self, config: PromptsConfig, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raises UserError if ``tokenizer`` is not a fast tokenizer, or has no chat template where one is needed."""
        if not tokenizer.is_fast:
            raise UserError(
                f"generator.path: {tokenizer.name_or_path}: {type(tokenizer).__name__} is a slow tokenizer; use a "
                "model folder with tokenizer.json"
            )
        self._config = config
        self._tokenizer = ByteTokenizer(tokenizer)
        self._renderer = ChatRenderer(tokenizer, config.as_corpus(), section="prompts")
        before, _ = added_around(tokenizer)
        self._before = np.array(before, np.uint32)
        self._bos = str(tokenizer.bos_token or "") if before else ""
        self.counts = PromptCounts()

    def __iter__(self) -> Iterator[Prompt]:
        """Yield the prompts and set ``counts``. Raises UserError for bad input, and if there was no prompt."""
        tally: Counter[str] = Counter()
        waiting: list[Prompt] = []
        for prompt in self._rendered(tally):
            waiting.append(prompt)
            if len(waiting) == _BATCH:
                yield from self._tokenized(waiting, tally)
                waiting = []
        yield from self._tokenized(waiting, tally)
        self.counts = PromptCounts(**tally)
        if not self.counts.prompts:
            left_out = {
                name: count for name, count in self.counts.model_dump().items() if count and name != "documents"
            }
            raise UserError(
                f"prompts.sources: no prompt in {self.counts.documents} records: "
                f"{', '.join(f'{count} {name}' for name, count in left_out.items()) or 'nothing there'}; check "
                "prompts.sources and prompts.max_tokens"
            )

    def _rendered(self, tally: Counter[str]) -> Iterator[Prompt]:
        """Distinct prompts, not tokenized yet."""
        seen: Counter[bytes] = Counter()
        for read in read_prompts(self._config):
            tally["documents"] += 1
            try:
                if isinstance(read, BadRecord):
                    raise read
                if read.messages is None and not read.text:
                    tally["empty"] += 1
                    continue
                content = digest(read)
                seen[content] += 1
                if seen[content] > 1 and self._config.deduplicate:
                    tally["duplicates"] += 1
                    continue
                yield self._prompt(read, _key(content, seen[content]))
            except BadRecord as error:
                if self._config.on_bad_record == "stop":
                    raise
                reason = error.reason if error.reason in ("answered", "refused") else "malformed"
                if not tally[reason]:
                    logger.warning("dropped (%s; further ones are only counted): %s", reason, error)
                tally[reason] += 1

    def _prompt(self, document: Document, key: str) -> Prompt:
        chat = b""
        if document.messages is None:
            text = without_prefix(document, self._bos).text
        else:
            text, record = self._renderer.prompt(document)
            chat = record.to_json()
        check_encodable(text, document.where)
        return Prompt(key, document.source_id, document.mix_layer, text, np.empty(0, np.uint32), chat)

    def _tokenized(self, prompts: list[Prompt], tally: Counter[str]) -> Iterator[Prompt]:
        found = self._tokenizer.encode([prompt.prompt for prompt in prompts])
        for prompt, spans in zip(prompts, found, strict=True):
            ids = spans.ids if prompt.chat else np.concatenate([self._before, spans.ids])
            if len(ids) > self._config.max_tokens:
                tally["too_long"] += 1
            elif not len(ids):
                tally["empty"] += 1
            else:
                tally["prompts"] += 1
                tally["tokens"] += len(ids)
                yield Prompt(prompt.key, prompt.source_id, prompt.layer, prompt.prompt, ids, prompt.chat)


def _key(content: bytes, occurrence: int) -> str:
    """The prompt's key; prompts that are there several times have different ones."""
    if occurrence == 1:
        return content.hex()
    return xxhash.xxh3_128_hexdigest(content + occurrence.to_bytes(8, "little"))
