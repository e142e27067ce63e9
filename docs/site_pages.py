"""Hook of mkdocs: bring README.md, the other pages of the root folder, and linked files into the site.

Documents link each other by relative paths in the repository, so that they can be read where they lie. In the site
README.md is the front page, pages of the root folder are in lower case, and other files (``configs/demo-cache.yaml``)
keep their path.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(\]\(|src(?:set)?=\")([^)\s\"#:]+)(?=[)#\"])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root folder, and files outside of ``docs`` that a page links to."""
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, content=_in_site((ROOT / name).read_text("utf-8"), name)))
    for name in {target for path in ROOT.glob("docs/**/*.md") for target in _outside(path)}:
        files.append(File.generated(config, name, content=(ROOT / name).read_bytes()))
    for name in {target for page in PAGES for target in _outside(ROOT / page)} - {file.src_uri for file in files}:
        files.append(File.generated(config, name, content=(ROOT / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of a page of ``docs`` as they are in the site."""
    uri = page.file.src_uri
    return markdown if uri in PAGES.values() else _in_site(markdown, f"docs/{uri}")


def _outside(document: Path) -> set[str]:
    """The repository paths of files, not pages, outside of ``docs`` that a document links to."""
    folder = document.relative_to(ROOT).parent.as_posix()
    links = {
        posixpath.normpath(posixpath.join(folder, match[2])) for match in LINK.finditer(document.read_text("utf-8"))
    }
    return {name for name in links - PAGES.keys() if not name.startswith("docs/") and (ROOT / name).is_file()}


def _in_site(text: str, document: str) -> str:
    """The text of a repository's document with every relative link as the site has it."""
    folder, here = posixpath.dirname(document), posixpath.dirname(_uri(document))

    def moved(match: re.Match[str]) -> str:
        target = _uri(posixpath.normpath(posixpath.join(folder, match[2])))
        return match[1] + posixpath.relpath(target, here or ".")

    return LINK.sub(moved, text)


def _uri(path: str) -> str:
    """Where a file of the repository is in the site."""
    return PAGES.get(path, path.removeprefix("docs/"))
