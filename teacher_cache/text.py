"""Sanitise untrusted text for a terminal line or a Markdown page.

Which characters need escaping depends on the Markdown dialect (some make links of bare addresses, even escaped ones);
code is code in all of them, so untrusted text is shown as code.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from schemas.errors import printable

MAX_LINES = 200


def one_line(text: str, limit: int = 200) -> str:
    """``text`` on one line of at most ``limit`` characters, escaped by ``printable``, truncated with ``…``."""
    start = text[: 8 * limit]
    line = printable(" ".join(start.split()))
    if len(line) <= limit and len(start) == len(text):
        return line
    return line[: limit - 1] + "…"


def code_span(text: str, limit: int = 200) -> str:
    """A Markdown code span that shows ``text`` literally, on one line."""
    line = one_line(text, limit) or " "
    ticks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def code_block(text: str, limit: int = 4000, language: str = "text") -> list[str]:
    """Lines of a Markdown code block that shows ``text`` literally, up to ``MAX_LINES`` lines."""
    lines = [printable(line.expandtabs(4)).rstrip() for line in text[:limit].splitlines()[:MAX_LINES]]
    if len(text) > limit or len(text.splitlines()) > MAX_LINES:
        lines.append("…")
    ticks = "`" * max(3, 1 + max(map(_longest_run, lines), default=0))
    return [ticks + language, *lines, ticks]


def front_matter(values: Mapping[str, Any]) -> list[str]:
    """Lines of a YAML header of strings, numbers and lists of them.

    Strings are reduced to letters, digits and ``._/+-``: readers without front matter render it as Markdown.
    """
    plain = {
        name: [_word(v) for v in value] if isinstance(value, list) else _word(value) for name, value in values.items()
    }
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=float("inf"), default_flow_style=None)
    return ["---", *text.splitlines(), "---"]


def in_header(card: str, *lines: str) -> str:
    """The card with more lines at the top of its YAML header, which is made if there is none."""
    header, start = "".join(f"{line}\n" for line in lines), "---\n"
    return start + header + (card.removeprefix(start) if card.startswith(start) else start + card)


def reason_of(error: Exception) -> str:
    """``: REASON`` of a model that could not be loaded, to append to its path.

    '' for the hub client's complaint about the form of a name, which it raises for every path that is not a folder.
    """
    line = one_line(str(error).strip().partition("\n")[0], 300)
    return "" if line.startswith("Repo id must") else f": {line}"


def _word(value: Any) -> Any:
    return re.sub(r"([^\w./+ -]|-)+", "-", one_line(value)) if isinstance(value, str) else value


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
