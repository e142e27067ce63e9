"""Documents: sizes, links and anchors, files and settings that they name, the site's contents."""

import posixpath
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from benchmarks.support.results import RESULTS
from schemas.cache_config import CacheConfig
from schemas.curate_config import CurateConfig
from schemas.generate_config import GenerateConfig
from schemas.manifest import Manifest
from schemas.matrix_config import MatrixConfig
from schemas.train_config import TrainConfig
from support.markdown_pages import DOCUMENTS, GENERATED, ROOT, anchors, blocks, inline_code, links

HISTORY = ROOT / "CHANGELOG.md"  # names what there was
NAMED_FILE = re.compile(r"(?:schemas|teacher_cache|trainer|tools|tests|benchmarks|configs|docs|requirements)/[\w./-]+")
CONFIGS = (CacheConfig, TrainConfig, GenerateConfig, CurateConfig, MatrixConfig)
SECTION = "|".join({name for config in CONFIGS for name in config.model_fields} - {"output"})
SETTING = re.compile(rf"(?:{SECTION}|output)(?:\.\w+|\[\])+")


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_to_files_and_anchors(document: Path) -> None:
    assert dead_links(document) == []


def dead_links(document: Path) -> list[str]:
    dead = []
    for link in links(document):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.is_file() or not target.is_relative_to(ROOT) or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


def test_a_dead_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A `b`: c/d – e\n\n## Again\n\n## Again\n")
    good = "[x](other.md) [x](other.md#a-b-cd--e) [x](#here) [x](other.md#again-1) [x](https://example.org)"
    bad = ["none.md", "other.md#none", "#none", "../outside.md", "other.md#again-2"]
    document = tmp_path / "page.md"
    document.write_text("# Here\n\n" + good + "".join(f" [x]({link})" for link in bad) + " `[x](code.md)`\n")
    assert dead_links(document) == bad


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each != HISTORY], ids=name)
def test_files_that_are_named_exist(document: Path) -> None:
    named = [code for code in inline_code(document) if NAMED_FILE.fullmatch(code) and "NAME" not in code]
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each != HISTORY], ids=name)
def test_settings_that_are_named_exist(document: Path) -> None:
    named = [match[0] for code in inline_code(document) if (match := SETTING.match(code)) and "(" not in code]
    named = [each for each in named if not each.endswith((".py", ".md", ".json", ".jsonl", ".yaml"))]
    assert [each for each in named if not is_setting(each)] == []


def is_setting(dotted: str) -> bool:
    """Whether a configuration or a manifest has such a key; ``[]`` is an entry of a list."""
    names = dotted.replace("[]", "").split(".")
    return any(_leads_on(model, names) for model in (*CONFIGS, Manifest))


def _leads_on(model: type[BaseModel], names: list[str]) -> bool:
    field = model.model_fields.get(names[0])
    if field is None:
        return False
    if len(names) == 1:
        return True
    if names[1].isdigit():
        names = [names[0], *names[2:]]
    inner = [each for each in _models(field.annotation) if issubclass(each, BaseModel)]
    return len(names) == 1 or any(_leads_on(each, names[1:]) for each in inner)


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


def test_unknown_settings_are_found() -> None:
    assert is_setting("data.cache[].digest")
    assert is_setting("corpus.sources.0.path")
    assert is_setting("losses.tla.weight.start")
    assert is_setting("sampling.stop")
    assert not is_setting("sampling.stops")
    assert not is_setting("data.cache[].digests")
    assert not is_setting("losses.tla.weight.begin")


def test_the_readme_is_read_in_two_minutes() -> None:
    readme = ROOT / "README.md"
    lines = readme.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    first = next(block for block in blocks(readme) if block.commands)
    assert first.text.startswith("$ ")
    assert len(first.text.splitlines()) > len(first.commands) + 3, "a command, and what it prints"
    assert first.line + len(first.text.splitlines()) + 1 <= 40


def test_the_architecture_is_short() -> None:
    lines = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    start = lines.index("## Where to add things")
    entries = "\n".join(lines[start + 1 : lines.index("## Decisions")]).strip().split("\n- ")
    assert len(entries) >= 5
    assert max(len(entry.splitlines()) for entry in entries) < 10


def test_every_result_has_a_table() -> None:
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    missing = [path.stem for path in RESULTS.glob("*.json") if f"<!-- results:{path.stem} -->" not in page]
    assert missing == []


def test_the_site_has_every_page() -> None:
    text = re.sub(r"!!python\S*", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(_pages(yaml.safe_load(text)["nav"]))
    pages = {posixpath.relpath(document, ROOT / "docs") for document in DOCUMENTS if document.parent != ROOT}
    assert listed == pages | {"index.md", "architecture.md", "contributing.md", "changelog.md"}


def _pages(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in _pages(part)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", [each for each in DOCUMENTS if each not in GENERATED], ids=name)
def test_blocks_have_a_language_that_is_checked(document: Path) -> None:
    known = {"console", "python", "yaml", "make"}
    assert [block.place for block in blocks(document) if block.language not in known] == []
