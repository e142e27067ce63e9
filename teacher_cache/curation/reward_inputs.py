"""What a reward model reads: the chat by the template of its tokenizer, or else prompt and reply as a pair of texts.

Inputs that are longer than allowed lose their beginning, and say so.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from teacher_cache.corpus.documents import Document
from teacher_cache.corpus.message_forms import without_training_keys
from teacher_cache.curation.record import Record


class RewardInput(NamedTuple):
    """Token ids and token types of one input, int64 [S]."""

    ids: np.ndarray
    types: np.ndarray
    truncated: bool


class RewardInputs:
    """Turns records into inputs."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        tokenizer.truncation_side = "left"

    def encode(self, records: Sequence[Record]) -> list[RewardInput | None]:
        """The input of each record; None if the chat template refuses it, or there is nothing to read."""
        return [self._encoded(record) for record in records]

    def _encoded(self, record: Record) -> RewardInput | None:
        if self._tokenizer.chat_template and record.messages is not None:
            try:
                text = self._rendered(record)
            except Exception:  # templates raise what they like
                return None
            found = self._tokenizer(text, add_special_tokens=False)
            cut = slice(-self._max_tokens, None)
        else:
            pair = (record.prompt, record.reply) if record.prompt else (record.reply,)
            found = self._tokenizer(*pair)
            if len(found["input_ids"]) > self._max_tokens:  # again, so that special tokens stay
                short = self._tokenizer(*pair, truncation="longest_first", max_length=self._max_tokens)
                return _input(short, slice(None), truncated=True)
            cut = slice(None)
        if not found["input_ids"]:
            return None
        return _input(found, cut, truncated=len(found["input_ids"]) > self._max_tokens)

    def _rendered(self, record: Record) -> str:
        messages = [without_training_keys(message) for message in record.messages or []]
        content = record.content
        given: dict[str, Any] = dict(content.template_kwargs) if isinstance(content, Document) else {}
        if isinstance(content, Document):
            given |= {"tools": content.tools, "documents": content.documents}
        rendered: str = self._tokenizer.apply_chat_template(messages, tokenize=False, **given)
        return rendered


def _input(found: Any, cut: slice, *, truncated: bool) -> RewardInput:
    ids = np.array(found["input_ids"], np.int64)[cut]
    types = found.get("token_type_ids")
    return RewardInput(ids, np.zeros_like(ids) if types is None else np.array(types, np.int64)[cut], truncated)


def batches(inputs: Sequence[RewardInput], batch_tokens: int) -> list[list[int]]:
    """Places of inputs, the longest first, in batches of at most ``batch_tokens`` tokens with padding, or of one."""
    found: list[list[int]] = []
    longest = 0
    for place in sorted(range(len(inputs)), key=lambda place: -len(inputs[place].ids)):
        if not found or (len(found[-1]) + 1) * longest > batch_tokens:
            found.append([])
            longest = len(inputs[place].ids)
        found[-1].append(place)
    return found
