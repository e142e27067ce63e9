"""Chats through the tokenizer's chat template, and which parts of the rendered text are the assistant's.

Works for any template, with or without ``{% generation %}`` marks, by rendering the chat again with one reply
replaced by a placeholder: what stands before and after the placeholder is the template's and bounds the reply. A
reply's span runs from the end of the generation prompt to the end of its end-of-turn text (``<|im_end|>``), which
the assistant must produce; white space after that is the template's and does not count. Costs two more renderings a
reply, little next to scoring it.
"""

from typing import TYPE_CHECKING, Any

from schemas.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLACEHOLDER = "\ue000\ue001\ue002"  # private-use characters: no template gives them a meaning
Span = tuple[int, int]


class ChatRenderer:
    """Renders chats and finds the assistant's replies in the rendered text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._end_of_turn: str | None = None

    def render(self, messages: list[dict[str, Any]], where: str) -> tuple[str, list[Span]]:
        """The chat as text, and the character span of each assistant reply with its end-of-turn text.

        Raises UserError, starting with ``where``, when the tokenizer has no chat template, the template refuses the
        chat, or a reply cannot be located because the template rewrites what surrounds it.
        """
        text = self._apply(messages, where)
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return text, [self._reply(text, messages, i, where) for i in replies]

    def _reply(self, text: str, messages: list[dict[str, Any]], i: int, where: str) -> Span:
        marked = [*messages[:i], {**messages[i], "content": _PLACEHOLDER}, *messages[i + 1 :]]
        head, found, tail = self._apply(marked, where).partition(_PLACEHOLDER)
        prompt = self._apply(messages[:i], where, add_generation_prompt=True) if i else head
        end_of_turn = self._find_end_of_turn(where)
        start = next((len(part) for part in (prompt, head) if text.startswith(part)), None)
        stop = len(text) - len(tail)
        if not (found and start is not None and start <= stop and text.endswith(tail) and tail.startswith(end_of_turn)):
            raise UserError(
                f"{where}: cannot locate the reply in message {i} of the rendered chat: the tokenizer's chat template "
                "is not prefix-consistent; use a template that renders every turn independently of later ones"
            )
        return start, stop + len(end_of_turn)

    def _find_end_of_turn(self, where: str) -> str:
        """What the template puts after a reply, without the white space at its end."""
        if self._end_of_turn is None:
            chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PLACEHOLDER}]
            self._end_of_turn = self._apply(chat, where).partition(_PLACEHOLDER)[2].rstrip()
        return self._end_of_turn

    def _apply(self, messages: list[dict[str, Any]], where: str, add_generation_prompt: bool = False) -> str:
        if not self._tokenizer.chat_template:
            raise UserError(
                f"{where}: the record is a chat and the teacher's tokenizer has no chat template; "
                "use a teacher with one, or render the chats to plain text"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is a program: it may fail in any way
            raise UserError(f"{where}: the chat template refuses this chat: {error}") from None
        return str(text)
