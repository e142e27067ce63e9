"""The page in a real browser: no requests, no code from a run's files, keyboard control, readable contrast."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from support.chromium import opened, started_browser
from support.contrast import contrasts
from support.page_attacks import ATTACKS, check_policy
from support.run_outputs import metric_lines, write_run
from trainer.run_report.run_page import report_runs

SAMPLES = [{"step": step, "prompt": "def f(x):", "text": f" return {step}"} for step in (0, 40)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as found:
        yield found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run = write_run(folder / "a", metric_lines(2000, spike_at=777), ended="completed", samples=SAMPLES, planned=2000)
    report_runs([str(run)], folder / "r.html")
    return folder / "r.html"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    runs = [
        write_run(folder / f"run{i}", metric_lines(40 + 10 * i, level=i), lr=1e-4 * (i + 1), samples=SAMPLES)
        for i in range(8)
    ]
    report_runs(list(map(str, runs)), folder / "r.html")
    return folder / "r.html"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs with hostile text in every field."""
    folder, everything = tmp_path_factory.mktemp("attacked"), " ".join(ATTACKS)
    lines = [line | {attack: line["step"] for attack in ATTACKS} for line in metric_lines(20)]
    lines += [{"step": 20, **{f"eval_{attack}": 1.0 for attack in ATTACKS}}]
    samples = [
        {"step": step, "prompt": attack, "text": f"{everything}{step}"} for step in (0, 20) for attack in ATTACKS
    ]
    names = [f"{i}<img src=x onerror=window.hacked=1>" for i in range(2)]
    runs = [write_run(folder / name, lines, samples=samples, output=everything + name) for name in names]
    for run in runs:
        record = json.loads((run / "run.json").read_text())
        record["config"][ATTACKS[0]] = {ATTACKS[1]: everything, ATTACKS[5]: run.name}
        (run / "run.json").write_text(json.dumps(record))
        (run / "summary.json").write_text(json.dumps({"ended": ATTACKS[1], "steps": 20}))
    report_runs(list(map(str, runs)), folder / "r.html")
    return folder / "r.html"


def readings(page: Page) -> list[str]:
    return page.locator(".reading").all_inner_texts()


@pytest.mark.parametrize("name", ["one", "several"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_opens_without_errors_or_requests(
    browser: Browser, request: pytest.FixtureRequest, name: str, scheme: str, width: int
) -> None:
    file: Path = request.getfixturevalue(name)
    with opened(browser, file, width, scheme) as found:
        page = found.page
        expect(page.locator("#reader")).to_be_visible()
        page.locator("#step").fill("7")
        for button in page.locator("#reader button").all():
            button.click()
        for summary in page.locator("summary").all():
            summary.click()
        page.locator("figure svg").first.hover()
        assert found.problems == []
        assert page.evaluate("window.violations") == []
        assert found.requests == [file.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_content_security_policy_holds(browser: Browser, one: Path, tmp_path: Path) -> None:
    check_policy(browser, one, tmp_path, "#reader")


def test_content_of_runs_is_shown_and_never_executed(browser: Browser, attacked: Path) -> None:
    with opened(browser, attacked) as found:
        page = found.page
        page.locator("#step").fill("7")
        for button in page.locator("#reader button").all():
            button.click()
            button.click()
        page.locator("summary").click()
        page.wait_for_timeout(200)
        assert page.evaluate("window.hacked") is None
        assert found.problems == []
        assert page.evaluate("window.violations") == []
        assert found.requests == [attacked.as_uri()]
        text = page.locator("main").evaluate("e => e.textContent")
        for attack in ATTACKS[:6]:
            assert text.count(attack) > 5
        assert "\u202e" not in text
        assert page.locator("img, svg[onload], main script, b").count() == 0
        assert page.locator("script").count() == 2


def test_values_are_read_at_the_step(browser: Browser, several: Path) -> None:
    lines = {line["step"]: line["loss"] for line in metric_lines(40) if "loss" in line}
    with opened(browser, several) as found:
        page = found.page
        page.locator("#step").fill("23")
        assert page.locator("#at").inner_text() == "23 of 110"
        reading = readings(page)[0]
        assert float(re.findall(r"1: ([\d.]+)", reading)[0]) == pytest.approx(lines[23], rel=1e-3)
        assert reading.count("·") == 7
        cursor = page.locator("figure .cursor").first
        before = cursor.get_attribute("d")
        page.locator("#step").fill("70")
        assert cursor.get_attribute("d") != before
        assert cursor.evaluate("e => getComputedStyle(e).visibility") == "visible"
        assert readings(page)[0].startswith("1: – · 2: – · 3: – · 4: ")
        assert "–" not in readings(page)[0].partition("4: ")[2]
        box = page.locator("figure svg").first.bounding_box()
        assert box is not None
        page.locator("figure svg").first.hover(position={"x": box["width"] * 0.3, "y": box["height"] / 2})
        assert 15 < int(page.locator("#step").input_value()) < 40


def test_a_spike_can_be_read_and_seen(browser: Browser, one: Path) -> None:
    with opened(browser, one) as found:
        page = found.page
        page.locator("#step").fill("777")
        assert re.search(r"\(.* … 99\)", readings(page)[0])
        box = page.locator("figure .envelope").first.evaluate("e => [e.getBBox().y, e.ownerSVGElement.getBBox().y]")
        assert box[0] < 30


def test_runs_can_be_hidden(browser: Browser, several: Path) -> None:
    with opened(browser, several) as found:
        page = found.page
        first, second = page.locator("figure .curve.run-1").first, page.locator("figure .curve.run-2").first
        page.get_by_role("button", name="Run 2: run1").click()
        expect(second).to_be_hidden()
        expect(first).to_be_visible()
        assert "2: " not in readings(page)[0].replace("1: ", "")[:6]
        assert readings(page)[0].count("·") == 6
        assert page.get_by_role("button", name="Run 2: run1").get_attribute("aria-pressed") == "false"
        page.get_by_role("button", name="Run 2: run1").click()
        expect(second).to_be_visible()


def test_the_keyboard_alone(browser: Browser, several: Path) -> None:
    with opened(browser, several, width=700) as found:
        page = found.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "plots"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "step"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Home")
        at = page.locator("#at")
        expect(at).to_have_text("0 of 110")
        page.keyboard.press("ArrowRight")
        expect(at).to_have_text("1 of 110")
        page.keyboard.press("End")
        expect(at).to_have_text("110 of 110")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"
        expect(page.locator("figure .curve.run-1").first).to_be_hidden()
        for _ in range(8):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('role')") == "region"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_curves_can_be_seen(browser: Browser, several: Path, scheme: str) -> None:
    with opened(browser, several, scheme=scheme) as found:
        page = found.page
        page.locator("summary").click()
        page.locator("#step").fill("5")
        ratios = contrasts(page)
        assert len(ratios) > 300
        assert [(round(ratio, 2), what) for ratio, what in ratios if ratio < 4.5] == []
        strokes = (
            page.locator("figure").first.locator(".curve").evaluate_all("e => e.map(c => getComputedStyle(c).stroke)")
        )
        assert len(set(strokes)) == 8
        body = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (body == "rgb(255, 255, 255)") == (scheme == "light")
        assert min(luminance_ratio(stroke, body) for stroke in strokes) >= 3


def luminance_ratio(a: str, b: str) -> float:
    """Contrast of two opaque colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_structure_is_accessible(browser: Browser, several: Path) -> None:
    with opened(browser, several) as found:
        page = found.page
        assert page.title() == "8 training runs"
        assert page.locator("html").get_attribute("lang") == "en"
        for landmark in ("banner", "main", "contentinfo"):
            expect(page.get_by_role(landmark)).to_have_count(1)
        levels = page.locator("h1, h2, h3, h4").evaluate_all("e => e.map(h => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert page.locator("svg:not([aria-label]):not([aria-hidden])").count() == 0
        expect(page.get_by_role("slider", name="Step")).to_be_visible()
        expect(page.get_by_role("group", name="Runs shown").get_by_role("button")).to_have_count(8)


def test_without_scripts_the_plots_are_there(browser: Browser, several: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(several.as_uri())
        expect(page.locator("noscript p")).to_be_visible()
        expect(page.locator("#reader")).to_be_hidden()
        assert page.locator("svg.plot").count() > 10
    finally:
        context.close()
