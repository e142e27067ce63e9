"""Render chats with a chat template: the text, its trained spans, and which replies the template truncated.

Any template works, with or without ``{% generation %}`` blocks. ``template.py`` attributes rendered text to messages,
``turns.py`` locates the reply inside it, ``messages.py`` normalizes messages. A chat is rejected when the template
raises, or when a reply does not appear in the rendered text.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateSyntaxError

from schemas.cache_config import RESERVED_VARIABLES, CorpusConfig
from schemas.chat_record import ChatRecord
from schemas.errors import UserError
from schemas.failures import failure
from schemas.regular_files import MAX_TEXT_BYTES, open_regular
from teacher_cache.corpus.documents import BadRecord
from teacher_cache.corpus.message_forms import (
    SAID,
    THINKING,
    Message,
    arguments,
    as_parts,
    forms,
    texts,
    trained,
    without_training_keys,
)
from teacher_cache.corpus.said import chat_record
from teacher_cache.corpus.template import GENERATION, ChatTemplate, Span
from teacher_cache.corpus.turns import PROBE, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from teacher_cache.corpus.documents import Document

logger = logging.getLogger(__name__)

_WORD_OR_MARKUP = re.compile(r"<[^<>]*>|\w(?=\w)")
_SENTINELS = 0x100001  # private use area, after PROBE: one character per message


@dataclass(frozen=True)
class RenderedChat:
    """Rendered chat: text, character spans to train on, and the number of replies with parts left out."""

    text: str
    spans: list[Span]
    cut_replies: int
    record: ChatRecord


class ChatRenderer:
    """Renders chats and finds the replies in the rendered text."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", config: CorpusConfig, whose: str = "", section: str = "corpus"
    ) -> None:
        """``whose``: of whom the tokenizer is, if not of a teacher. ``section``: of the configuration, for messages."""
        self._section = section
        self._tokenizer = tokenizer
        self._whose = whose
        self._config = config
        self._templates: dict[str, ChatTemplate] = {}
        self._wants_parts: dict[str, bool] = {}
        self._known_keys = {"role", *SAID}
        self._warned: set[str] = set()

    def render(self, document: "Document") -> RenderedChat:
        """Render a chat and locate the spans to train on, each including its end-of-turn text.

        Raises BadRecord when the template rejects the chat or omits a reply, UserError when there is no template;
        both name the record.
        """
        where = document.where
        original = document.messages or []
        chosen = trained(original, self._config.roles_to_train, where)
        template = self._template(document)
        variables = self._variables(document, template)
        messages = [without_training_keys(message) for message in original]
        for key in {key for message in messages for key in message} - self._known_keys:
            self._known_keys.add(key)
            if key not in template.source:
                self._warn(key, f"{where}: message key {key!r} is ignored: the chat template does not use it")
        turns = self._turns(template, self._with_content_form(template, messages), variables, where)
        replies: dict[int, list[Span]] = {}
        cut = 0
        for number in chosen:
            found = turns.spans(number, prompted=original[number]["role"] == "assistant")
            missing, said = _left_out(turns.messages[number], turns.written(number))
            if missing and len(missing) == said:
                raise self._lost(turns, number, missing[0][1], where)
            for name, text in missing:
                self._warn(
                    name,
                    f"{where}: message {number}: the chat template omits {name} ({_brief(text)}), so it is not "
                    "cached; such replies are counted as cut_replies",
                )
            cut += bool(missing)
            replies[number] = found
        self._check(template, turns, chosen, variables, where)
        spans = sorted(span for found in replies.values() for span in found)
        around = {number: (found[0][0], found[-1][1]) for number, found in replies.items() if found}
        return RenderedChat(turns.text, spans, cut, chat_record(document, turns.text, turns.written_spans(), around))

    def prompt(self, document: "Document") -> tuple[str, ChatRecord]:
        """Render a chat up to where its next reply begins, with the template's generation prompt.

        Raises BadRecord when the template rejects the chat or omits its last message, UserError when there is no
        template.
        """
        original = document.messages or []
        template = self._template(document)
        variables = {**self._variables(document, template), GENERATION: True}
        messages = self._with_content_form(template, [without_training_keys(message) for message in original])
        turns = self._turns(template, messages, variables, document.where)
        last = len(original) - 1
        missing, said = _left_out(turns.messages[last], turns.written(last))
        if missing and len(missing) == said:
            raise self._lost(turns, last, missing[0][1], document.where)
        return turns.text, chat_record(document, turns.text, turns.written_spans(), {})

    def _template(self, document: "Document") -> ChatTemplate:
        key = f"{self._section}.chat_template"
        try:
            source = template_source(self._tokenizer, self._config.chat_template, document.tools, key)
        except ValueError as error:  # several named templates, no default
            raise UserError(f"{document.where}: {error}; name one of them in {key}") from None
        if not source and self._whose:
            raise UserError(
                f"{document.where}: the sample is a chat, but the tokenizer of {self._whose} has no chat template; add "
                "a chat_template.jinja to its folder"
            )
        if not source:
            raise UserError(
                f"{document.where}: the record is a chat, but the model's tokenizer has no chat template; set "
                f"{key}, use a model that has one, or render the chats to plain text"
            )
        if source not in self._templates:
            constants = {**self._tokenizer.special_tokens_map, **self._config.chat_template_kwargs}
            try:
                self._templates[source] = ChatTemplate(source, constants)
            except TemplateSyntaxError as error:
                name = self._config.chat_template or f"of the tokenizer of {self._whose or 'the model'}"
                raise UserError(f"chat template {name}: line {error.lineno}: {error.message}") from None
        return self._templates[source]

    def _variables(self, document: "Document", template: ChatTemplate) -> dict[str, Any]:
        """Template variables from the record other than its messages; unused ones are warned about once."""
        given = {**document.template_kwargs}
        if reserved := sorted(given.keys() & RESERVED_VARIABLES):
            raise BadRecord(f"{document.where}: chat_template_kwargs sets {reserved[0]!r}, which is reserved")
        if document.tools:
            given["tools"] = document.tools
        if document.documents:
            given["documents"] = document.documents
        for name in given.keys() | self._config.chat_template_kwargs.keys():
            if name not in template.names:
                origin = (
                    f"{document.where}: the record's" if name in given else f"{self._section}.chat_template_kwargs:"
                )
                self._warn(f"variable {name}", f"{origin} {name!r} is ignored: the chat template has no such variable")
        return given

    def _with_content_form(self, template: ChatTemplate, messages: list[Message]) -> list[Message]:
        """Content as a string, or as a list of parts if the template renders nothing else."""
        if template.source not in self._wants_parts:

            def writes(content: Any) -> bool:
                chat = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
                try:
                    return template.text(chat).count(PROBE) == len(chat)
                except Exception:  # a template is a program: it can raise anything
                    return False

            self._wants_parts[template.source] = not writes(PROBE) and writes([{"type": "text", "text": PROBE}])
        return [as_parts(message) for message in messages] if self._wants_parts[template.source] else messages

    def _turns(
        self, template: ChatTemplate, messages: list[Message], variables: Mapping[str, Any], where: str
    ) -> Turns:
        """Render the chat in the first form for which the template writes every tool call."""
        refusal: Exception | None = None
        incomplete: Turns | None = None
        for form in forms(messages):
            try:
                turns = Turns(template, form, variables)
            except Exception as error:  # as above
                refusal = refusal or error
                continue
            if all(_calls_are_written(turns, number) for number in range(len(form))):
                return turns
            incomplete = incomplete or turns
        if incomplete is None:
            raise BadRecord(f"{where}: the chat template rejects this chat: {refusal}", "refused")
        return incomplete

    def _check(
        self,
        template: ChatTemplate,
        turns: Turns,
        chosen: list[int],
        variables: Mapping[str, Any],
        where: str,
    ) -> None:
        """Reject a chat whose template writes one message's text into another's turn, detected by tagging each."""
        signs = {number: chr(_SENTINELS + number) for number in range(len(turns.messages))}
        try:
            marked = Turns(template, [_signed(m, signs[n]) for n, m in enumerate(turns.messages)], variables)
        except Exception:  # as above; here the template rejects the tags
            return
        for number in chosen:
            if not _foreign(marked.written(number), number, signs):
                continue
            prompted = turns.messages[number]["role"] == "assistant"
            said = "".join(marked.text[a:b] for a, b in marked.spans(number, prompted))
            if foreign := _foreign(said, number, signs):
                raise BadRecord(
                    f"{where}: message {number}: cannot locate the reply: the chat template writes message "
                    f"{foreign[0]} into it; set another corpus.chat_template, or corpus.on_bad_record: drop",
                    "not_located",
                )

    def _lost(self, turns: Turns, number: int, text: str, where: str) -> BadRecord:
        advice = f"set another {self._section}.chat_template, or {self._section}.on_bad_record: drop"
        if not turns.written(number) and _squeezed(text) in _squeezed(turns.text):
            return BadRecord(
                f"{where}: message {number}: cannot locate the reply ({_brief(text)}); {advice}", "not_located"
            )
        return BadRecord(
            f"{where}: message {number}: the chat template does not render this reply ({_brief(text)}); {advice}",
            "reply_lost",
        )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)


def template_source(
    tokenizer: "PreTrainedTokenizerBase",
    configured: str | None,
    tools: list[dict[str, Any]] | None = None,
    key: str = "corpus.chat_template",
) -> str | None:
    """The chat template in effect: ``configured`` (a template name of the tokenizer, or a file), or the tokenizer's.

    Raises UserError when the file cannot be read, ValueError when the tokenizer has several templates and no default.
    """
    own = tokenizer.chat_template
    if configured is None:
        return tokenizer.get_chat_template(None, tools) if own else None
    if isinstance(own, dict) and configured in own:
        return str(own[configured])
    try:
        with open_regular(Path(configured).expanduser()) as file:
            return file.read(MAX_TEXT_BYTES).decode()
    except (OSError, ValueError) as error:
        named = f"the tokenizer's templates are {sorted(own)}; " if isinstance(own, dict) else ""
        raise failure(error, f"{key}: {configured}", f"{named}pass a Jinja file") from None


def _left_out(message: Message, written: str) -> tuple[list[tuple[str, str]], int]:
    """(name, text) of the parts of a message that ``written`` lacks, and the number of parts in total."""
    parts = []
    for name, text in texts(message):
        thinking = THINKING.fullmatch(text) if name == "content" else None
        if thinking is not None:
            parts += [("<think>", thinking["reasoning"]), (name, thinking["answer"])]
        else:
            parts.append((name, text))
    parts = [(name, text.strip()) for name, text in parts if text.strip()]
    missing = [(name, text) for name, text in parts if _squeezed(text) not in _squeezed(written)]
    for call in message.get("tool_calls", ()):
        for text in [call["function"]["name"], *_leaves(arguments(call))]:
            if text not in written and json.dumps(text)[1:-1] not in written:
                missing.append(("tool_calls", text))
                break
    return missing, len(parts) + len(message.get("tool_calls", ()))


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _calls_are_written(turns: Turns, number: int) -> bool:
    """Whether every call's name is rendered, without Python reprs of its arguments or a literal ``None``."""
    message = turns.messages[number]
    calls = message.get("tool_calls", ())
    written = turns.written(number) if calls else ""
    return all(
        call["function"]["name"] in written and (not arguments(call) or repr(arguments(call)) not in written)
        for call in calls
    ) and not (calls and message["content"] is None and "None" in written)


def _leaves(value: Any) -> list[str]:
    """The strings in a JSON value."""
    if isinstance(value, str):
        return [value] if not value.lstrip().startswith("{") else []
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [leaf for item in items for leaf in _leaves(item)]


def _signed(message: Message, sign: str) -> Message:
    """The message with ``sign`` inserted into its text, inside the first word that is not markup."""
    content = message["content"]
    if not isinstance(content, str):
        return message
    words = (match.end() for match in _WORD_OR_MARKUP.finditer(content) if content[match.start()] != "<")
    at = next(words, None)
    return message if at is None else {**message, "content": content[:at] + sign + content[at:]}


def _foreign(text: str, number: int, signs: Mapping[int, str]) -> list[int]:
    return [other for other, sign in signs.items() if other != number and sign in text]


def _brief(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
