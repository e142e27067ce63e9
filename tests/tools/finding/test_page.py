"""The catalogue's page in a browser: text from caches stays text, and the table works without a mouse."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from support.chromium import started_browser
from support.forge import change_manifest
from support.hostile import ALL, write_hostile_cache
from support.signed import sign
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.storage import Storage
from tools.finding.catalog import scan, write
from tools.finding.page import page

CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => channels(colour).slice(0, 3)
    .map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if ((channels(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  for (const element of document.querySelectorAll("body *")) {
    const own = Array.from(element.childNodes).some((node) => node.nodeType === 3 && node.data.trim());
    if (!own && element.tagName !== "INPUT" || !element.checkVisibility()) continue;
    for (const pseudo of [null, "::before", "::after", "::placeholder"]) {
      const [a, b] = [luminance(getComputedStyle(element, pseudo).color), luminance(ground(element))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const name = element.tagName + (pseudo ?? "");
      found[name] = Math.min(found[name] ?? 99, ratio);
    }
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as found:
        yield found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three valid caches of 20, 3 and 100 tokens, a hostile one of 13, a broken one, one with an unusable name."""
    root = tmp_path_factory.mktemp("caches")
    for name, length in (("c10", 20), ("c9", 3), ("b", 100)):
        write_cache(str(root / name), random_shards([[length]]))
        change_manifest(str(root / name), lambda tree, name=name: tree["teacher"].update(name=f"Teacher-{name}"))
    sign(str(root / "b"), 1, "<img src=x onerror='window.hacked=1'>")
    write_hostile_cache(root / "evil")
    write_cache(str(root / "broken"), random_shards([[3]]))
    change_manifest(str(root / "broken"), lambda tree: tree.update({"<img src=x onerror=window.hacked=1>": 1}))
    write_cache(str(root / "<b>"), random_shards([[3]]))
    write(Storage(str(root)), scan(str(root)))
    return root


@pytest.fixture
def opened(browser: Browser, root: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page in a colour scheme and width; fails on any console message, error or request."""
    options: dict[str, Any] = {"color_scheme": "light", "viewport": {"width": 1200, "height": 800}}
    context = browser.new_context(**options | getattr(request, "param", {}))
    opened, trouble = context.new_page(), []
    opened.on("console", lambda message: trouble.append(message.text))
    opened.on("pageerror", lambda error: trouble.append(str(error)))
    opened.on("dialog", lambda dialog: trouble.append(dialog.message))
    opened.on("request", lambda request: trouble.append(request.url))
    opened.goto((root / "catalog.html").as_uri())
    yield opened
    opened.evaluate("new Promise((done) => setTimeout(done, 50))")
    assert trouble == [(root / "catalog.html").as_uri()]
    context.close()


def names(page: Page) -> list[str]:
    """Names of the visible rows, in order."""
    shown = "rows => rows.filter(row => row.checkVisibility()).map(row => row.cells[0].dataset.value)"
    return page.locator("#caches tbody tr").evaluate_all(shown)


def test_content_of_caches_is_escaped(opened: Page) -> None:
    assert opened.evaluate("window.hacked") is None
    for summary in opened.locator("summary").all():
        summary.click()
    assert opened.locator("img, iframe, object, a, link, svg, b, template").count() == 0
    assert opened.locator("script").count() == 1
    assert "<script>window.hacked=1</script>" in opened.locator("tbody").inner_text()
    assert "{{ 7*7 }}" in opened.locator("tbody").inner_text()
    assert "<img src=x onerror='window.hacked=1'>" in opened.locator("tbody").inner_text()
    assert "onerror=window.hacked=1" in opened.locator("#problems").inner_text()
    assert "names: 1" in opened.locator("#problems summary").inner_text()


def test_the_content_security_policy_stops_injected_scripts(browser: Browser, root: Path) -> None:
    """Even if escaping failed: no script, handler, style or request."""
    context = browser.new_context()
    page = context.new_page()
    text = (root / "catalog.html").read_text()
    extra = (
        "<script>window.hacked=1</script><p id=x style='color:red'>x</p>"
        "<img src='http://127.0.0.1:9/x' onerror='window.hacked=1'>"
    )
    page.set_content(text.replace("<main>", f"<main>{extra}"))
    assert page.locator("#x").count() == 1
    assert page.evaluate("window.hacked") is None
    assert page.locator("#x").evaluate("e => getComputedStyle(e).color") != "rgb(255, 0, 0)"
    page.get_by_label("Filter").fill("c10")
    assert names(page) == ["c10"]
    context.close()


def test_filtering_by_keyboard(opened: Page) -> None:
    assert names(opened) == ["b", "c10", "c9", "evil"]
    opened.keyboard.press("Tab")
    opened.keyboard.type("TEACHER-C")
    assert names(opened) == ["c10", "c9"]
    assert opened.get_by_role("status").inner_text() == "2 shown"
    opened.keyboard.type("1 float32")
    assert names(opened) == ["c10"]
    opened.keyboard.press("Enter")
    assert names(opened) == ["c10"]
    opened.keyboard.type("zzz")
    assert (names(opened), opened.get_by_role("status").inner_text()) == ([], "0 shown")


@pytest.mark.parametrize(
    ("column", "order"),
    [
        (1, ["b", "c9", "c10", "evil"]),
        (2, None),
        (4, ["c9", "evil", "c10", "b"]),
        (9, ["c10", "c9", "evil", "b"]),
    ],
    ids=["cache", "teacher", "tokens", "signed"],
)
def test_sorting_by_keyboard(opened: Page, column: int, order: list[str] | None) -> None:
    for _ in range(1 + column):
        opened.keyboard.press("Tab")
    head = opened.locator("th").nth(column - 1)
    opened.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    rising = names(opened)
    assert order is None or rising == order
    assert sorted(rising) == ["b", "c10", "c9", "evil"]
    opened.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert opened.locator("th[aria-sort=none]").count() == 8
    assert column == 9 or names(opened) == rising[::-1]


def test_of_many_caches_the_first_are_shown(browser: Browser, root: Path, tmp_path: Path) -> None:
    catalog = scan(str(root))
    entry = next(entry for entry in catalog.caches if entry.path == "c9")
    many = [entry.model_copy(update={"path": f"c{number}", "tokens": 1000 - number}) for number in range(250)]
    (tmp_path / "many.html").write_text(page(catalog.model_copy(update={"caches": many})))
    context = browser.new_context()
    opened = context.new_page()
    opened.goto((tmp_path / "many.html").as_uri())
    status, more = opened.get_by_role("status"), opened.get_by_role("button", name="Show all")
    assert names(opened) == [f"c{number}" for number in range(200)]
    assert status.inner_text() == "200 of 250 shown"
    opened.get_by_role("button", name="Tokens").click()
    assert names(opened) == [f"c{number}" for number in range(249, 49, -1)]
    opened.get_by_label("Filter").fill("c249")
    assert (names(opened), status.inner_text(), more.is_visible()) == (["c249"], "1 shown", False)
    opened.get_by_label("Filter").fill("")
    more.press("Enter")
    assert (len(names(opened)), status.inner_text(), more.is_visible()) == (250, "250 shown", False)
    assert opened.evaluate("document.activeElement.id") == "filter"
    context.close()


def test_details_by_keyboard(opened: Page) -> None:
    for _ in range(11):
        opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    assert opened.locator("details[open] dt").first.inner_text() == "digest"


@pytest.mark.parametrize("opened", [{"color_scheme": scheme} for scheme in ("light", "dark")], indirect=True, ids=str)
def test_both_schemes_are_legible(opened: Page) -> None:
    for summary in opened.locator("summary").all():
        summary.click()
    found = opened.evaluate(CONTRAST)
    assert {"TD", "BUTTON::after", "INPUT::placeholder", "CODE", "DT", "SPAN", "SUMMARY"} <= {*found}
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}


def test_the_schemes_differ(browser: Browser, root: Path) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto((root / "catalog.html").as_uri())
        grounds.add(page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor"))
        context.close()
    assert len(grounds) == 2


@pytest.mark.parametrize(
    "opened", [{"viewport": {"width": width, "height": 700}} for width in (360, 800, 1000)], indirect=True, ids=str
)
def test_nothing_is_wider_than_the_screen(opened: Page) -> None:
    for summary in opened.locator("summary").all():
        summary.click()
    width = opened.evaluate("window.innerWidth")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    edges = opened.locator("body *").evaluate_all(
        "all => all.filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect().right)"
    )
    assert max(edges) <= width
    opened.get_by_role("button", name="Tokens").click()
    assert names(opened) == ["c9", "evil", "c10", "b"]


def test_the_page_has_no_external_references(root: Path) -> None:
    text = page(scan(str(root)))
    outside = re.sub(r"<tbody.*</tbody>", "", text, flags=re.DOTALL)
    assert "http://" not in outside
    assert "https://" not in outside
    assert "innerHTML" not in text
    assert ALL not in text
    assert "<b>" not in text
