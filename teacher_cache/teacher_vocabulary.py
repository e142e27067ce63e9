"""The teacher's vocabulary as a file of the cache: the bytes of its tokens, and which of them end a text or a turn."""

from typing import TYPE_CHECKING

import numpy as np

from schemas.cache_config import CorpusConfig, TeacherConfig
from schemas.errors import UserError
from teacher_cache.corpus.chat import ChatRenderer
from teacher_cache.corpus.documents import Document
from teacher_cache.corpus.token_spans import vocabulary_bytes
from teacher_cache.teacher import load_stop_tokens
from teacher_cache.token_table import TokenTable, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def teacher_vocabulary(config: TeacherConfig, corpus: CorpusConfig, tokenizer: "PreTrainedTokenizerBase") -> Vocabulary:
    """The vocabulary of a teacher, with the chat template in effect."""
    table = TokenTable.of(vocabulary_bytes(tokenizer))
    numbers = np.arange(len(table.length_V))
    stops = {*load_stop_tokens(config), *end_of_turn(tokenizer, corpus)}
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return Vocabulary(
        table, np.isin(numbers, [*special, *tokenizer.all_special_ids, *stops]), np.isin(numbers, [*stops])
    )


def end_of_turn(tokenizer: "PreTrainedTokenizerBase", corpus: CorpusConfig) -> set[int]:
    """The special tokens with which the chat template ends a reply; none if there is no template, or it fails."""
    said = "reply"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": said}]
    try:
        chat = ChatRenderer(tokenizer, corpus).render(Document("", "a chat of one reply", "", "", messages))
    except UserError:
        return set()
    ids = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    reply = chat.text[chat.spans[0][0] : chat.spans[-1][1]] if chat.spans else ""
    closing = reply.rpartition(said)[2]
    return ids.intersection(tokenizer(closing, add_special_tokens=False)["input_ids"])
