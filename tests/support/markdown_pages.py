"""The project's Markdown: documents, fenced blocks, headings and links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
GENERATED = {ROOT / "docs/engines.md", ROOT / "docs/resume.md"}  # from measurements, and from the trainer's own table

FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- ([^>]*?) -->\s*\Z")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
CODE = re.compile(r"`([^`\n]+)`")
NOT_RUN = "not run: "


@dataclass(frozen=True)
class Block:
    """A fenced block. ``note`` is the comment right before it: ``not run: why``, or whose commands they are."""

    document: Path
    line: int
    language: str
    title: str
    text: str
    note: str

    @property
    def is_run(self) -> bool:
        return not self.note.startswith(NOT_RUN)

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """What a reader types: the ``$`` lines of a console block, with lines that a backslash continues."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.removeprefix("$ ").split("  #")[0].strip() for line in lines if line.startswith("$ ")]


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [_block(document, text, match) for match in FENCE.finditer(text)]


def _block(document: Path, text: str, match: re.Match[str]) -> Block:
    _, language, rest, body = match.groups()
    title = re.search(r'title="([^"]+)"', rest)
    notes = []
    before = text[: match.start()].rstrip()
    while comment := COMMENT.search(before):  # a generated block's own comment may stand between
        notes.append(comment[1])
        before = before[: comment.start()].rstrip()
    note = next((note for note in notes if note.startswith(NOT_RUN)), notes[0] if notes else "")
    line = text.count("\n", 0, match.start()) + 1
    return Block(document, line, language, title[1] if title else "", body, note)


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """The anchors of its headings, as GitHub and the site make them."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(document)):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        repeated = sum(each == slug or re.fullmatch(re.escape(slug) + r"-\d+", each) is not None for each in found)
        found.add(f"{slug}-{repeated}" if repeated else slug)
    return found


def links(document: Path) -> Iterator[str]:
    for match in LINK.finditer(CODE.sub("", prose(document))):
        yield match[1] or match[2]


def inline_code(document: Path) -> list[str]:
    return CODE.findall(prose(document))
