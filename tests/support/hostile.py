"""Text that tries to be more than text: on a page, in Markdown, on a terminal."""

from pathlib import Path
from typing import Any

from support.forge import change_manifest
from support.synthetic import random_shards, write_cache

MARKUP = (
    "</script></style><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
    '<a href="javascript:window.hacked=1">a</a>{{ 7*7 }}{% raw %}&lt;'
)
MARKDOWN = (
    "x\n\n# Heading\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n[link](http://evil.example)\n![image](http://evil.example/i.png)\n"
    "<b onclick='x'>bold</b>\n```\n````\n</details>\nhttp://evil.example www.evil.example a@evil.example\n---\n- item\n"
)
TERMINAL = "\x1b[2J\x1b]0;title\x07\x00\x9b31m\u202egnp.exe\u2066\ufeff\u2028"
ALL = MARKUP + MARKDOWN + TERMINAL


def write_hostile_cache(url: str | Path, **provenance: str) -> None:
    """A cache that can be read, and whose every free text is hostile; its notes are a megabyte."""
    write_cache(str(url), random_shards([[9, 4]], seed=9))
    texts = {"licence": ALL, "owner": ALL, "notes": ALL + "n" * 1_000_000} | provenance

    def change(tree: dict[str, Any]) -> None:
        tree["teacher"].update(name=ALL, revision=ALL, architecture=ALL, dtype=ALL)
        tree["provenance"].update(texts)
        tree["corpus"]["settings"]["sources"][0].update(path=ALL, layer=ALL)
        source = {"manifest_sha256": "d" * 64, "samples": 2, "tokens": 13}
        tree["derived"] = {"action": "subset", "sources": [source], "selection": {"layers": [ALL]}, "notes": ALL}

    change_manifest(str(url), change)
