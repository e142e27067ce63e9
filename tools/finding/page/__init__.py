"""The catalogue as one self-contained HTML page: no server, no network, no foreign scripts.

The template escapes all text that comes from caches; the content security policy allows only the style and script in
this folder, by hash.
"""

from importlib.resources import files

from schemas.catalog_file import Catalog
from teacher_cache.pages.frame import page_script
from teacher_cache.pages.page_policy import page_policy
from tools.finding.words import pull_command


def page(catalog: Catalog) -> str:
    """The catalogue's HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from rich.filesize import decimal

    template, style, script = (_text(f"page.{kind}") for kind in ("html.j2", "css", "js"))
    script = page_script("elements.js") + page_script("sorted_table.js") + script
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["size"] = decimal
    return environment.from_string(template).render(
        catalog=catalog,
        pull_command=pull_command,
        style=Markup(style),
        script=Markup(script),
        policy=page_policy(style, script),
    )


def _text(name: str) -> str:
    return files("tools.finding.page").joinpath(name).read_text(encoding="utf-8").strip()
