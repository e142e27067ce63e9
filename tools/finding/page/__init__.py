"""The catalogue as one page that needs nothing else: no server, no network, and no script but its own.

Everything that caches say is text to the template, which escapes it; the content security policy allows exactly the
style and the script beside this file, by their hashes.
"""

from importlib.resources import files

from schemas.catalog_file import Catalog
from tools.finding.words import pull_command
from tools.page_policy import page_policy


def page(catalog: Catalog) -> str:
    """The HTML."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from rich.filesize import decimal

    template, style, script = (_text(f"page.{kind}") for kind in ("html.j2", "css", "js"))
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
