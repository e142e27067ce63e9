"""The teacher's vocabulary as a file of the cache: the bytes of its tokens, and which of them end a text or a turn."""

from typing import TYPE_CHECKING

import numpy as np

from schemas.cache_config import CorpusConfig, TeacherConfig
from schemas.errors import UserError
from teacher_cache.corpus.chat import ChatRenderer
from teacher_cache.corpus.documents import Document
from teacher_cache.corpus.token_spans import special_ids, vocabulary_table
from teacher_cache.teacher import load_stop_tokens
from teacher_cache.token_table import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def teacher_vocabulary(config: TeacherConfig, corpus: CorpusConfig, tokenizer: "PreTrainedTokenizerBase") -> Vocabulary:
    """The vocabulary of a teacher, with the chat template in effect."""
    table = vocabulary_table(tokenizer)
    numbers = np.arange(len(table.length_V))
    stops = {*load_stop_tokens(config), *end_of_turn(tokenizer, corpus)}
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    special = {*special_ids(tokenizer), *tokenizer.all_special_ids, *stops}
    return Vocabulary(table, np.isin(numbers, [*special]), np.isin(numbers, [*stops]))


def end_of_turn(tokenizer: "PreTrainedTokenizerBase", corpus: CorpusConfig) -> list[int]:
    """The special tokens with which the chat template ends a reply, in order; none if it fails or is not there."""
    said = "reply"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": said}]
    try:
        chat = ChatRenderer(tokenizer, corpus).render(Document("", "a chat of one reply", "", "", messages))
    except UserError:
        return []
    reply = chat.text[chat.spans[0][0] : chat.spans[-1][1]] if chat.spans else ""
    closing = reply.rpartition(said)[2]
    special = special_ids(tokenizer)
    return [index for index in tokenizer(closing, add_special_tokens=False)["input_ids"] if index in special]
