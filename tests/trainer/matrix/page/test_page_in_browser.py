"""The page in a real browser: no requests, no code from answers, keyboard control, readable contrast."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from support.chromium import opened, started_browser
from support.contrast import contrasts
from support.matrix_results import MadeModel, MadeResults, MadeTask, made_results, made_teachers
from teacher_cache.pages.page_text import shown_text
from trainer.matrix.page.matrix_page import matrix_page

ATTACKS = (
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "</ScRiPt ><svg onload=window.hacked=1>",
    "<!--<script>",
    "[[7*7]]",
    "\"'><b onclick=window.hacked=1>",
    "&lt;b&gt; &amp; \u2028\u2029 \\u003c",
    "${window.hacked=1}`",
    "\u202etxet desrever\u202c \u2066",
)
EVERYTHING = " ".join(ATTACKS)
MODELS = [
    MadeModel("teacher", 0.25),
    *(MadeModel(f"s{n}", 0.1, "student", n) for n in (1, 2)),
    MadeModel("small", 0.08),
]
TASKS = [
    MadeTask("quiz", chance=0.25),
    MadeTask("far", "reasoning", items=400),
    MadeTask("kl", "teacher", "kl", unit="nats", higher_is_better=False, kind="distillation"),
    MadeTask("speed", "speed", "seconds p50", 1.5, "speed", 0, "s", higher_is_better=False),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as found:
        yield found


@pytest.fixture(scope="module")
def made() -> MadeResults:
    return made_results(MODELS, TASKS, notes=["small has one seed."])


@pytest.fixture(scope="module")
def file(made: MadeResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "matrix.html"
    path.write_text(matrix_page(made.cells, made.items, made.comparison, made_teachers()), "utf-8")
    return path


def rows(page: Page) -> list[str]:
    return page.locator("#pairs tbody tr:visible").all_inner_texts()


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.id")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_opens_without_errors_or_requests_and_can_be_read(
    browser: Browser, file: Path, scheme: str, width: int
) -> None:
    with opened(browser, file, width, scheme) as found:
        page = found.page
        for number in range(page.locator("#which-pair option").count()):
            page.locator("#which-pair").select_option(index=number)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        expect(page.locator("#items details").first).to_be_visible()
        ratios = contrasts(page)
        assert len(ratios) > 300
        assert [(round(ratio, 2), what) for ratio, what in ratios if ratio < 4.5] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert found.problems == []
        assert page.evaluate("window.violations") == []
        assert found.requests == [file.as_uri()]


def test_texts_are_shown_and_never_executed(browser: Browser, tmp_path: Path) -> None:
    text = EVERYTHING.replace("{", "{{").replace("}", "}}")
    made = made_results(
        [MadeModel(EVERYTHING, 0.2, answer=text), MadeModel(f"{EVERYTHING}2", arm=ATTACKS[1], seed=1, answer=text)],
        [
            MadeTask(EVERYTHING, ATTACKS[0], ATTACKS[1], prompt=text, cluster=ATTACKS[2]),
            MadeTask(
                ATTACKS[3], ATTACKS[5], ATTACKS[5], 1.0, "speed", 0, ATTACKS[5], more={ATTACKS[1]: (1.0, ATTACKS[2])}
            ),
        ],
        notes=[EVERYTHING],
    )
    path = tmp_path / "matrix.html"
    page_text = matrix_page(made.cells, made.items, made.comparison, made_teachers(EVERYTHING, EVERYTHING))
    path.write_text(page_text.replace("<main>", "<main><script>window.hacked=2</script>"), "utf-8")
    with opened(browser, path) as found:
        page = found.page
        page.locator("#items summary").first.click()
        page.locator("#pairs a").first.click()
        page.wait_for_timeout(200)
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("window.violations") == ["script-src-elem"]  # the script that this test put there
        assert len(found.problems) == 1
        assert found.requests[:1] == [path.as_uri()]
        assert {request.partition("#")[0] for request in found.requests} == {path.as_uri()}
        assert page.locator("img, svg[onload], b").count() == 0
        for part in (".prompt pre", ".answers .won pre", ".answers .lost pre"):
            shown = page.locator(f"#items details >> nth=0 >> {part}").evaluate("e => e.textContent")
            assert shown == shown_text(EVERYTHING, 400)
        assert page.locator("#pairs th bdi").first.evaluate("e => e.textContent") == shown_text(EVERYTHING)


def test_sorting_and_filtering_with_the_keyboard(browser: Browser, file: Path, made: MadeResults) -> None:
    with opened(browser, file) as found:
        page = found.page
        assert len(rows(page)) == len(made.comparison.pairs) == 9
        heading = page.get_by_role("columnheader", name="Difference")
        heading.get_by_role("button").focus()
        page.keyboard.press("Enter")
        expect(heading).to_have_attribute("aria-sort", "ascending")
        column = "cells => cells.map(cell => Number(cell.dataset.value))"
        values = page.locator("#pairs td:nth-child(4)").evaluate_all(column)
        assert values == sorted(values)
        page.keyboard.press("Enter")
        expect(heading).to_have_attribute("aria-sort", "descending")
        assert page.locator("#pairs td:nth-child(4)").evaluate_all(column) == values[::-1]
        assert page.locator("#pairs th[aria-sort=ascending], #pairs th[aria-sort=descending]").count() == 1
        page.locator("#filter").focus()
        page.keyboard.type("quiz teacher")
        assert len(rows(page)) == 2
        expect(page.locator("#count")).to_have_text("2 shown")
        page.keyboard.press("Enter")  # the form is not sent
        page.locator("#filter").fill("")
        page.locator("#verdict").focus()
        page.keyboard.press("End")  # "cannot tell"
        unsure = sum(pair.verdict == "cannot tell" for pair in made.comparison.pairs)
        assert len(rows(page)) == unsure > 0
        assert all("cannot tell" in row for row in rows(page))
        assert found.requests == [file.as_uri()]


def test_items_of_a_pair_with_the_keyboard(browser: Browser, file: Path, made: MadeResults) -> None:
    with opened(browser, file, width=800) as found:
        page = found.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert focused(page) == "verdicts"
        page.keyboard.press("Tab")
        link = page.locator(".said a").first
        assert link.evaluate("e => e === document.activeElement")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.locator("#pairs tbody tr", has_text="kl").first.get_by_role("link").focus()
        page.keyboard.press("Enter")
        assert focused(page) == "changed"
        expect(page.locator("#which-task option:checked")).to_have_text("kl")
        pair = next(pair for pair in made.comparison.pairs if pair.task == "kl" and pair.verdict != "cannot tell")
        about = page.locator("#about")
        expect(about).to_contain_text(f"{pair.a} is better on {pair.a_better} items")
        expect(about).to_contain_text(f"12 of these {pair.a_better + pair.b_better} are shown")
        scores = page.locator("#items details").first.locator(".score").all_inner_texts()
        means = [sum(map(float, each.removeprefix("score ").split(", "))) / each.count(".") for each in scores]
        won = (
            page.locator("#items details").first.locator(".answers > div").evaluate_all("e => e.map(d => d.className)")
        )
        assert won[means.index(min(means))] == "won"  # a lower KL
        page.keyboard.press("Tab")
        assert focused(page) == "which-pair"
        page.keyboard.press("End")
        page.keyboard.press("Tab")
        assert focused(page) == "which-task"
        page.keyboard.press("Home")
        expect(about).to_contain_text("student is better on")
        expect(page.locator("#items .wanted pre").first).to_contain_text("the answer")
        page.keyboard.press("Tab")
        third = page.locator("#items details").nth(2)
        third.locator("summary").focus()
        page.keyboard.press("Enter")
        expect(third.locator(".prompt pre")).to_be_visible()


def test_many_rows_are_shown_when_asked_for(browser: Browser, tmp_path: Path) -> None:
    made = made_results([MadeModel(f"m{n}") for n in range(16)], [MadeTask("t", items=9)])
    path = tmp_path / "matrix.html"
    path.write_text(matrix_page(made.cells, made.items, made.comparison), "utf-8")
    with opened(browser, path) as found:
        expect(found.page.locator("#count")).to_have_text("100 of 120 shown")
        found.page.get_by_role("button", name="Show all").click()
        assert len(rows(found.page)) == 120
        assert focused(found.page) == "filter"


def test_the_structure_is_accessible(browser: Browser, file: Path) -> None:
    with opened(browser, file) as found:
        page = found.page
        assert page.title() == "4 models on 4 tasks"
        for landmark in ("banner", "main", "contentinfo", "search"):
            expect(page.get_by_role(landmark)).to_have_count(1)
        levels = page.locator("h1, h2, h3, h4").evaluate_all("e => e.map(h => Number(h.tagName[1]))")
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert page.locator("svg:not([aria-label]):not([aria-hidden])").count() == 0
        ids = page.locator("[id]").evaluate_all("e => e.map(each => each.id)")
        assert len(ids) == len(set(ids))
        for name in page.locator("[aria-labelledby]").evaluate_all(
            "e => e.map(s => s.getAttribute('aria-labelledby'))"
        ):
            assert name in ids
        expect(page.get_by_role("searchbox", name="Filter")).to_have_count(1)
        for label in ("Verdict", "Models", "Task"):
            expect(page.get_by_role("combobox", name=label)).to_have_count(1)
        assert page.locator(".scroll:not([tabindex='0'])").count() == 0


def test_without_scripts_all_but_the_items_are_there(browser: Browser, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(file.as_uri())
        expect(page.locator("noscript p")).to_be_visible()
        expect(page.locator("#viewer")).to_be_hidden()
        assert len(rows(page)) == 9
        assert page.locator("svg.plot").count() == 6
    finally:
        context.close()
