"""The frame of a page: head, content security policy, and a template's text with style, script and data inlined.

Nothing from data becomes markup: templates escape all text, and ``data`` is JSON that the script inserts as text. The
policy allows only this style and script, by hash, and no network requests.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teacher_cache.pages.page_policy import page_policy

HERE = Path(__file__).parent
_DANGEROUS = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(folder: Path, scripts: Sequence[str], data: Any, title: str, footer: str, **parts: Any) -> bytes:
    """The page of ``folder``, UTF-8: ``page.html.jinja``, which extends ``frame.html.jinja``, ``page.css`` and scripts.

    ``scripts``: names in the folder or beside this module, one after the other in one element. ``parts``: what
    the template uses.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (HERE / "frame.css").read_text("utf-8") + (folder / "page.css").read_text("utf-8")
    script = "".join(page_script(name, folder) for name in scripts)
    text = environment.get_template("page.html.jinja").render(
        policy=Markup(page_policy(style, script, "img-src data:")),
        style=Markup(style),
        script=Markup(script),
        data=Markup(inert_json(data)),
        title=title,
        footer=footer,
        **parts,
    )
    return text.encode("utf-8", "replace")


def page_script(name: str, folder: Path = HERE) -> str:
    """The script ``name`` in ``folder``, or else beside this module."""
    return next(file for file in (folder / name, HERE / name) if file.exists()).read_text("utf-8")


def inert_json(value: Any) -> str:
    """JSON that is safe inside a script element: it cannot end the element or begin a comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_DANGEROUS)
