"""Attribute each part of a chat template's output to the message it was written for.

A Jinja template writes a chat by looping over its messages. An instrumented copy emits marks into the text: where the
output for message i begins, where the loop ends, where ``{% generation %}`` blocks begin and end, and where the
``add_generation_prompt`` output begins. Every rendering checks that the copy's text without marks equals the
original's, so the marks are correct by construction, whatever the template does.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

Message = Mapping[str, Any]
Span = tuple[int, int]
GENERATION = "add_generation_prompt"
_LEFT, _RIGHT = "\U0010fdd0", "\U0010fdd1"  # private use area: no other text has this form
_MARK = re.compile(f"{_LEFT}(.)([0-9]*)(?::([0-9]+))?{_RIGHT}")
_HELPER = "_mark_message"


@dataclass(frozen=True)
class Rendered:
    """A rendered chat and the origin of its parts, in character offsets."""

    text: str
    owned: dict[int, list[Span]]  # by message: what its pass of the (innermost) loop wrote
    generated: list[Span]  # inside {% generation %}
    asked: int  # start of the ``add_generation_prompt`` output; the text's end if there is none

    def end(self) -> int:
        """End of the last message's output."""
        return max((span[1] for spans in self.owned.values() for span in spans), default=0)


class ChatTemplate:
    """One template with its constants: everything that does not depend on the chat."""

    def __init__(self, source: str, constants: Mapping[str, Any]) -> None:
        """``constants``: variables common to all chats: special tokens and configured template arguments.

        Raises jinja2.TemplateSyntaxError.
        """
        from transformers.utils.chat_template_utils import _compile_jinja_template

        now = datetime.now()
        self.source = source
        self._constants = {"strftime_now": now.strftime, **constants}  # fixed clock, so that renderings are comparable
        self._plain = _compile_jinja_template(source)

    @cached_property
    def names(self) -> frozenset[str]:
        """All variable names in the template; others have no effect."""
        return frozenset(name.name for name in self._plain.environment.parse(self.source).find_all(nodes.Name))

    @cached_property
    def _marked(self) -> list[Any]:
        """Instrumented copies: one fully, one only outside macros and assigned blocks."""
        environment = self._plain.environment
        copies = []
        for marker in (_Marker(), _DirectMarker()):
            code = environment.compile(marker.visit(environment.parse(self.source)))
            copies.append(environment.template_class.from_code(environment, code, environment.make_globals(None)))
        return copies

    def text(self, messages: Sequence[Message], **variables: Any) -> str:
        """The chat as text. A template is a program: it can raise anything."""
        return str(self._plain.render(messages=list(messages), **self._with_defaults(variables)))

    def render(self, messages: Sequence[Message], **variables: Any) -> Rendered | None:
        """The chat with the spans of its messages; None if the marks would change the text."""
        messages = list(messages)
        numbers = {id(message): number for number, message in enumerate(messages)}

        over_messages: set[int] = set()  # loops

        def mark(loop: int, item: object) -> str:
            number = numbers.get(id(item))
            if number is None:  # possibly a message that the template constructed
                return f"{_LEFT}e{loop}{_RIGHT}" if loop in over_messages else ""
            over_messages.add(loop)
            return f"{_LEFT}b{loop}:{number}{_RIGHT}"

        text = self.text(messages, **variables)
        context = self._with_defaults(variables)
        for template in self._marked:
            over_messages.clear()
            try:
                rendered = _read_marks(str(template.render(messages=messages, **context, **{_HELPER: mark})))
            except Exception:  # for instance, a mark where the template expects a number
                continue
            if rendered.text == text:
                return rendered
        return None

    def _with_defaults(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return {"tools": None, "documents": None, GENERATION: False, **self._constants, **variables}


class _Marker(NodeTransformer):
    """Inserts mark outputs into a template's syntax tree."""

    def __init__(self) -> None:
        self._loops = 0

    def visit_For(self, node: nodes.For) -> Any:
        self._loops += 1
        loop = self._loops
        self.generic_visit(node)
        item = _looped_item(node)
        if item is None:
            return node
        call = nodes.Call(nodes.Name(_HELPER, "load"), [nodes.Const(loop), item], [], None, None)
        node.body.insert(0, nodes.Output([call]))
        return [node, _output(f"e{loop}")]

    def visit_If(self, node: nodes.If) -> Any:
        self.generic_visit(node)
        if nodes.Name(GENERATION, "load") in (node.test, *node.test.find_all(nodes.Name)):
            node.body.insert(0, _output("p"))
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> Any:
        self.generic_visit(node)
        called = node.call.node
        if isinstance(called, nodes.ExtensionAttribute) and called.name == "_generation_support":
            node.body = [_output("("), *node.body, _output(")")]
        return node


class _DirectMarker(_Marker):
    """Skips output that the template captures and may inspect: macros and assigned blocks."""

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:
        return node


def _looped_item(node: nodes.For) -> nodes.Expr | None:
    """The item of one loop iteration: the loop variable, or ``list[variable]`` if that is an index."""
    if not isinstance(node.target, nodes.Name):
        return None
    item = nodes.Name(node.target.name, "load")
    stored = {name.name for part in node.body for name in part.find_all(nodes.Name) if name.ctx == "store"}
    for taken in node.find_all(nodes.Getitem):
        if taken.arg == item and isinstance(taken.node, nodes.Name) and taken.node.name not in stored:
            return taken
    return item


def _output(mark: str) -> nodes.Output:
    return nodes.Output([nodes.TemplateData(f"{_LEFT}{mark}{_RIGHT}")])


def _read_marks(marked: str) -> Rendered:
    parts: list[str] = []
    owned: dict[int, list[Span]] = {}
    generated: list[Span] = []
    opened: list[int] = []
    prompt: int | None = None
    stack: list[tuple[str, int]] = []  # open loops with their current message, innermost last
    length = at = 0
    for match in _MARK.finditer(marked):
        part = marked[at : match.start()]
        parts.append(part)
        if part and stack:
            _append(owned.setdefault(stack[-1][1], []), (length, length + len(part)))
        length += len(part)
        at = match.end()
        kind, loop, message = match.groups()
        if kind == "b":
            if stack and stack[-1][0] == loop:
                stack.pop()
            stack.append((loop, int(message)))
        elif kind == "e":
            if stack and stack[-1][0] == loop:
                stack.pop()
        elif kind == "p":
            prompt = length
        elif kind == "(":
            opened.append(length)
        elif kind == ")" and opened:
            generated.append((opened.pop(), length))
    text = "".join(parts) + marked[at:]
    return Rendered(text, owned, generated, len(text) if prompt is None else prompt)


def _append(spans: list[Span], span: Span) -> None:
    if spans and spans[-1][1] == span[0]:
        spans[-1] = (spans[-1][0], span[1])
    else:
        spans.append(span)
