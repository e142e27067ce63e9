"""Prompts as token ids: as they are, or as a user's message in the model's chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.cache_config import CorpusConfig, SourceConfig, TeacherConfig
from schemas.errors import UserError
from schemas.matrix_base import MatrixModel
from teacher_cache.lengths import max_length
from teacher_cache.teacher import load_stop_tokens
from teacher_cache.text import reason_of
from trainer.student.build import load_model_config
from trainer.student.student_tokenizer import load_tokenizer


class PromptIds:
    """A model's tokenizer."""

    def __init__(self, model: MatrixModel, chat: bool) -> None:
        """Load it. Raises UserError, also if there is no chat template and ``chat`` needs one."""
        self._model, self._chat = model, chat
        self.tokenizer: Any = load_tokenizer(Path(model.folder), f"models: {model.name}", model.trust_remote_code)
        if chat and not self.tokenizer.chat_template:
            raise UserError(f"chat: true: {model.folder} has no chat template; set chat: false for this task")

    def of(self, prompt: str, max_tokens: int | None = None) -> list[int]:
        """Token ids of a prompt, whose text loses its middle if it is longer than ``max_tokens``. Raises UserError."""
        if max_tokens is not None:
            prompt = self._without_middle(prompt, max_tokens)
        if not self._chat:
            return list(self.tokenizer(prompt)["input_ids"])
        messages = [{"role": "user", "content": prompt}]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template can raise anything
            raise UserError(f"{self._model.folder}: its chat template fails{reason_of(error)}") from None
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _without_middle(self, prompt: str, max_tokens: int) -> str:
        """As LongBench (arXiv 2308.14508) does: questions are at the beginning or the end."""
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if len(ids) <= max_tokens:
            return prompt
        first = max_tokens // 2
        return self._text(ids[:first]) + self._text(ids[len(ids) - (max_tokens - first) :])

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def end_ids(self) -> list[int]:
        """The tokens that end a text: of the model's settings, of its tokenizer, and of its chat template."""
        teacher = TeacherConfig(path=self._model.folder, trust_remote_code=self._model.trust_remote_code)
        found = load_stop_tokens(teacher)
        if self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        if self._chat:
            from teacher_cache.teacher_vocabulary import end_of_turn

            found |= {*end_of_turn(self.tokenizer, CorpusConfig(sources=[SourceConfig(path="chat")]))}
        return sorted(found)

    def check_lengths(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, names: Sequence[str], limit: int | None
    ) -> int:
        """The longest sequence, in tokens. Raises UserError, naming a prompt, if it is too long.

        limit: tokens that a sequence may have; default: the model's positions.
        """
        longest = max(range(len(prompts)), key=lambda place: len(prompts[place]))
        wanted = len(prompts[longest]) + new_tokens
        key = f"models: {self._model.name}"
        limit = limit or max_length(load_model_config(Path(self._model.folder), key, self._model.trust_remote_code))
        if limit is not None and wanted > limit:
            raise UserError(
                f"{names[longest]}: {len(prompts[longest])} tokens of the prompt and max_new_tokens {new_tokens} are "
                f"more than the {limit} that {self._model.folder} supports; lower max_new_tokens, set "
                "max_prompt_tokens where the task has it, or choose another model"
            )
        return wanted


def text_after(tokenizer: Any, prompt: Sequence[int], written: Sequence[int]) -> str:
    """The text of ``written``, token ids, as it follows the prompt: some tokenizers drop a text's leading space."""
    before = list(prompt[-8:])
    head, whole = (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in (before, [*before, *written])
    )
    if whole.startswith(head):
        return str(whole[len(head) :])
    return str(tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False))
