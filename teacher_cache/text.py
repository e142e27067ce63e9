"""Text that others wrote, made harmless: for a line on a terminal or a page, and for Markdown.

Escaping Markdown character by character depends on the dialect (some make links of bare addresses, even escaped ones).
Code is code in all of them, so that is how foreign text is shown.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from schemas.errors import printable

MAX_LINES = 200


def one_line(text: str, limit: int = 200) -> str:
    """On one line of at most ``limit`` characters, escaped as ``printable`` does; ``…`` for what is cut off the end."""
    start = text[: 8 * limit]
    line = printable(" ".join(start.split()))
    if len(line) <= limit and len(start) == len(text):
        return line
    return line[: limit - 1] + "…"


def code_span(text: str, limit: int = 200) -> str:
    """Markdown that shows ``text`` as it is, on one line, whatever it contains."""
    line = one_line(text, limit) or " "
    ticks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def code_block(text: str, limit: int = 4000, language: str = "text") -> list[str]:
    """Lines of Markdown that show lines of text as they are, whatever they contain."""
    lines = [printable(line.expandtabs(4)).rstrip() for line in text[:limit].splitlines()[:MAX_LINES]]
    if len(text) > limit or len(text.splitlines()) > MAX_LINES:
        lines.append("…")
    ticks = "`" * max(3, 1 + max(map(_longest_run, lines), default=0))
    return [ticks + language, *lines, ticks]


def front_matter(values: Mapping[str, Any]) -> list[str]:
    """Lines of a YAML header of strings, numbers and lists of them.

    Of strings only letters, digits and ``._/+-`` are kept: a reader that does not know headers takes it for Markdown.
    """
    plain = {
        name: [_word(v) for v in value] if isinstance(value, list) else _word(value) for name, value in values.items()
    }
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=float("inf"), default_flow_style=None)
    return ["---", *text.splitlines(), "---"]


def reason_of(error: Exception) -> str:
    """``: REASON`` of a model that could not be loaded, to put behind its path; '' if the path is no name of one.

    The hub's client takes what is no folder for the name of a model, and complains about its form.
    """
    line = one_line(str(error).strip().partition("\n")[0], 300)
    return "" if line.startswith("Repo id must") else f": {line}"


def _word(value: Any) -> Any:
    return re.sub(r"([^\w./+ -]|-)+", "-", one_line(value)) if isinstance(value, str) else value


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
