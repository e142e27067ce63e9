"""The page in a real browser: no requests, no code from a cache, keyboard control, readable contrast."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from schemas.cache_config import Provenance
from support.byte_student import write_byte_student
from support.chromium import opened, started_browser
from support.contrast import contrasts
from support.golden import GOLDEN, WITH_CHATS
from support.page_attacks import ATTACKS, check_policy
from support.synthetic import write_cache
from support.worded import worded_pair
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import MANIFEST, Storage
from tools.report.page import report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as found:
        yield found


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "golden.html"
    report(str(GOLDEN), file)
    return file


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report for a student of single bytes, with chats first."""
    folder = tmp_path_factory.mktemp("taught")
    student = write_byte_student(folder / "student")
    keys = CacheReader(str(WITH_CHATS), ("tokens",)).keys
    report(str(WITH_CHATS), folder / "r.html", samples=4, keys=[keys[76], keys[1]], student=student)
    return folder / "r.html"


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a cache with hostile text in every field."""
    folder = tmp_path_factory.mktemp("attacked")
    url, everything = str(folder / "cache"), " ".join(ATTACKS)
    pairs = [
        worded_pair(["a ", *ATTACKS, "\n", "b"], layer=ATTACKS[0] + ATTACKS[1], source_id=f"{everything}#1", seed=1),
        worded_pair(["c", "d"], layer=ATTACKS[3], source_id=ATTACKS[4], seed=2),
    ]
    manifest = write_cache(url, [pairs])
    teacher = manifest.teacher.model_copy(update={"name": everything, "architecture": ATTACKS[1]})
    provenance = Provenance(licence=ATTACKS[0], owner=ATTACKS[1], notes=everything)
    changed = manifest.model_copy(update={"teacher": teacher, "provenance": provenance})
    Storage(url).write(MANIFEST, changed.to_json().encode())
    report(url, folder / "r.html", student=write_byte_student(folder / "student"))
    return folder / "r.html"


def tokens(page: Page) -> Any:
    return page.get_by_role("option").and_(page.locator("#text [role=option]"))


def student_tokens(page: Page) -> Any:
    return page.get_by_role("option").and_(page.locator("#pairs [role=option]"))


@pytest.mark.parametrize("name", ["golden", "taught"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_report_opens_without_errors_or_requests(
    browser: Browser, request: pytest.FixtureRequest, name: str, scheme: str, width: int
) -> None:
    file: Path = request.getfixturevalue(name)
    with opened(browser, file, width, scheme) as found:
        expect(found.page.locator("#viewer")).to_be_visible()
        for number in range(found.page.locator("#which option").count()):
            found.page.locator("#which").select_option(str(number))
            tokens(found.page).nth(1).click()
        for number in range(found.page.locator("#which-student option").count()):
            found.page.locator("#which-student").select_option(str(number))
            student_tokens(found.page).nth(1).click()
        assert found.problems == []
        assert found.page.evaluate("window.violations") == []
        assert found.requests == [file.as_uri()]
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_content_security_policy_holds(browser: Browser, golden: Path, tmp_path: Path) -> None:
    check_policy(browser, golden, tmp_path, "#viewer")


def test_content_of_caches_is_shown_and_never_executed(browser: Browser, attacked: Path) -> None:
    with opened(browser, attacked) as found:
        page = found.page
        expect(page.locator("#viewer")).to_be_visible()
        for number in range(2):
            page.locator("#which").select_option(str(number))
            for place in range(tokens(page).count()):
                tokens(page).nth(place).click()
            page.locator("#which-student").select_option(str(number))
            student_tokens(page).nth(0).click()
            student_tokens(page).last.click()
        labels = page.locator("#which option").all_inner_texts()
        page.locator("#which").select_option(str([ATTACKS[0] in label for label in labels].index(True)))
        page.wait_for_timeout(200)
        assert page.evaluate("window.hacked") is None
        assert found.problems == []
        assert page.evaluate("window.violations") == []
        assert found.requests == [attacked.as_uri()]
        assert page.locator("#text").evaluate("e => e.textContent") == "".join(["a ", *ATTACKS, "\n", "b"])
        assert page.locator("h1").evaluate("e => e.textContent") == " ".join(ATTACKS)
        for attack in ATTACKS[:7]:
            assert attack in page.locator("main").evaluate("e => e.textContent")
        assert page.locator("img, svg[onload], main script, b").count() == 0
        assert page.locator("script").count() == 2
        assert page.locator("#about").evaluate("e => e.textContent").startswith(" ".join(ATTACKS)[:200])


def test_tokens_show_what_was_expected(browser: Browser, golden: Path) -> None:
    reader = CacheReader(str(GOLDEN), ("tokens", "logits", "attention"))
    with opened(browser, golden) as found:
        page = found.page
        key = page.locator("#about").inner_text().rpartition(" ")[2]
        position = reader.keys.index(key)
        logits, sample = reader.read_logits(position), reader.read_tokens(position)
        p = 8
        t = int(logits.positions[p])
        tokens(page).nth(t).click()
        panel = page.locator("#panel")
        expect(panel.locator("h3")).to_contain_text(f"Row {t}:")
        rows = panel.locator("table").first.locator("tbody tr")
        following = int(sample.input_ids[t + 1])
        listed = logits.ids[p, :6].tolist()
        assert rows.count() == 7 + (following not in listed)
        first = rows.first.inner_text()
        likeliest = logits.next_logprob[p] if following == listed[0] else logits.logprobs[p, 0]
        assert float(first.split()[-2]) == pytest.approx(100 * math.exp(likeliest), abs=0.06)
        expect(panel.locator(".came")).to_contain_text("came next, with")
        assert panel.locator("tr.next").count() == 1
        widths = rows.locator(".length").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
        assert widths[0] > widths[4] > 0
        assert tokens(page).nth(t).get_attribute("aria-selected") == "true"
        assert "came-next" in (tokens(page).nth(t + 1).get_attribute("class") or "")
        expect(page.locator("#status")).to_contain_text(f"Row {t}:")


def test_attention_and_norms(browser: Browser, golden: Path) -> None:
    reader = CacheReader(str(GOLDEN), ("tokens", "logits", "attention"))
    with opened(browser, golden) as found:
        page = found.page
        position = reader.keys.index(page.locator("#about").inner_text().rpartition(" ")[2])
        attention = reader.read_attention(position)
        t = 12  # attention rows are stored at every fourth token, hidden states at every third
        (p,) = [p for p, row in enumerate(attention.positions.tolist()) if row == t]
        tokens(page).nth(t).click()
        heads = page.locator(".heads button")
        assert heads.all_inner_texts() == [f"head {head}" for head in attention.heads.tolist()]
        for number in range(2):
            heads.nth(number).click()
            assert heads.nth(number).get_attribute("aria-pressed") == "true"
            assert heads.nth(number).evaluate("e => e === document.activeElement")
            keys = set(attention.keys[p, number][attention.weights[p, number] > 1e-4].tolist())
            marked = page.locator("#text").locator(".a1, .a2, .a3, .a4").evaluate_all("e => e.map(o => o.id)")
            assert {int(name.removeprefix("token-")) for name in marked} == keys
        assert page.locator("#panel dl").last.locator("dt").all_inner_texts() == ["layer 1", "layer 2", "final"]
        tokens(page).nth(t + 1).click()
        expect(page.locator(".heads")).to_have_count(0)
        assert page.locator("#text").locator(".a1, .a2, .a3, .a4").count() == 0


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.id")


def test_the_keyboard_alone(browser: Browser, golden: Path) -> None:
    with opened(browser, golden, width=700) as found:
        page = found.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert focused(page) == "samples"
        page.keyboard.press("Tab")
        assert focused(page) == "which"
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Tab")
        start = int(focused(page).removeprefix("token-"))
        assert page.locator("#text [tabindex='0']").count() == 1
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("Home")
        assert focused(page) == "token-0"
        page.keyboard.press("ArrowLeft")
        assert focused(page) == "token-0"
        page.keyboard.press("ArrowRight")
        assert focused(page) == "token-1"
        assert page.locator(f"#token-{start}").get_attribute("aria-selected") == "true"
        page.keyboard.press("Enter")
        assert page.locator("#token-1").get_attribute("aria-selected") == "true"
        assert page.locator("#text [aria-selected='true']").count() == 1
        expect(page.locator("#panel h3")).to_contain_text("Row 1:")
        page.keyboard.press("ArrowDown")
        below = focused(page)
        top = "e => e.getClientRects()[0].top"
        assert page.locator(f"#{below}").evaluate(top) > page.locator("#token-1").evaluate(top)
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowUp")
        assert page.locator(f"#{focused(page)}").evaluate(top) == page.locator("#token-1").evaluate(top)
        page.keyboard.press("End")
        assert focused(page) == f"token-{tokens(page).count() - 1}"
        page.keyboard.press("Space")
        expect(page.locator("#panel h3")).to_contain_text(f"Row {tokens(page).count() - 1}:")
        page.keyboard.press("Tab")
        assert focused(page) == "panel"


def test_tokens_of_both_lie_over_each_other(browser: Browser, taught: Path) -> None:
    """In the order of the text, over the same width where both spell the same, with colours and titles."""
    sample = json.loads(re.findall(r'id="data">(.*?)</script>', taught.read_text("utf-8"), re.DOTALL)[0])["student"]
    with opened(browser, taught) as found:
        page = found.page
        shown = [token for piece in sample["samples"][0]["pieces"] for token in piece["student"]]
        options = student_tokens(page)
        assert options.evaluate_all("e => e.map(o => o.textContent)") == [token["text"] for token in shown]
        boxes = page.locator(".pair").evaluate_all(
            "e => e.map(p => [...p.children].map(row => [row.textContent, row.getBoundingClientRect().width, "
            "row.getBoundingClientRect().top]))"
        )
        same = [(over, under) for over, under in boxes if over[0] == under[0] != ""]
        assert [over[0] for over, _ in same] == ["2", "."]
        for over, under in boxes:
            assert over[2] < under[2]
            assert over[0] != under[0] or abs(over[1] - under[1]) < 0.1
        titles = page.locator("#pairs .over .token").evaluate_all("e => e.map(o => o.title)")
        assert titles[0].startswith("teacher: <|im_start|>, id ")
        place = next(i for i, token in enumerate(shown) if token.get("best"))
        token = shown[place]
        best = ", ".join(f"{name} " for _, name, _ in token["best"][:1])
        title = options.nth(place).get_attribute("title") or ""
        assert title.startswith(f"{token['text']}, id {token['id']}: {sample['kinds'][token['kind']]['name']}; {best}")
        assert options.nth(place).get_attribute("aria-selected") == "true"
        rows = page.locator("#student-panel tbody tr")
        assert rows.count() == len(token["best"]) + 1
        assert (
            rows.first.inner_text().split()[-2]
            == f"{token['best'][0][2] / 100:.{2 if token['best'][0][2] < 1000 else 1}f}"
        )
        options.first.click()
        expect(page.locator("#student-panel")).to_contain_text("not learned")
        expect(page.locator("#student-panel")).to_contain_text("The teacher says nothing about this token")
        table = page.locator(".shares table").first
        colours = table.locator(".sample-of").evaluate_all("e => e.map(o => getComputedStyle(o).backgroundColor)")
        assert len(set(colours)) == 6
        kind = sample["kinds"][token["kind"]]["colour"]
        wanted = table.locator(f".{kind}").evaluate("o => getComputedStyle(o).backgroundColor")
        assert options.nth(place).evaluate("o => getComputedStyle(o).backgroundColor") == wanted


def test_the_students_tokens_with_the_keyboard_alone(browser: Browser, taught: Path) -> None:
    with opened(browser, taught, width=700) as found:
        page = found.page
        page.locator("#which-student").focus()
        page.keyboard.press("Tab")
        start = int(focused(page).removeprefix("student-"))
        assert page.locator("#pairs [tabindex='0']").count() == 1
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Home")
        assert focused(page) == "student-0"
        page.keyboard.press("ArrowRight")
        assert focused(page) == "student-1"
        assert page.locator(f"#student-{start}").get_attribute("aria-selected") == "true"
        page.keyboard.press("Enter")
        assert page.locator("#student-1").get_attribute("aria-selected") == "true"
        assert page.locator("#pairs [aria-selected='true']").count() == 1
        expect(page.locator("#student-status")).to_contain_text("Student token")
        page.keyboard.press("End")
        assert focused(page) == f"student-{student_tokens(page).count() - 1}"
        page.keyboard.press("Tab")
        assert focused(page) == "student-panel"
        expect(page.get_by_role("listbox", name="Tokens of the student")).to_be_visible()
        expect(page.get_by_role("combobox", name="Text")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_students_tokens_can_be_read(browser: Browser, taught: Path, scheme: str) -> None:
    with opened(browser, taught, scheme=scheme) as found:
        ratios = contrasts(found.page)
        assert [(round(ratio, 2), what) for ratio, what in ratios if ratio < 4.5] == []
        assert sum(".token" in what or "SPAN.token" in what for _, what in ratios) > 30


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: Browser, golden: Path, scheme: str) -> None:
    with opened(browser, golden, scheme=scheme) as found:
        page = found.page
        tokens(page).nth(12).click()
        ratios = contrasts(page)
        assert len(ratios) > 150
        assert [(round(ratio, 2), what) for ratio, what in ratios if ratio < 4.5] == []
        legend = page.locator(".legend li").evaluate_all("e => e.map(o => getComputedStyle(o).backgroundColor)")
        assert len(set(legend[1:-1])) == 7
        body = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (body == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_structure_is_accessible(browser: Browser, golden: Path) -> None:
    with opened(browser, golden) as found:
        page = found.page
        assert page.title() == "teacher"
        assert page.locator("html").get_attribute("lang") == "en"
        for landmark in ("banner", "main", "contentinfo", "complementary"):
            expect(page.get_by_role(landmark)).to_have_count(1)
        levels = page.locator("h1, h2, h3, h4").evaluate_all("e => e.map(h => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert page.locator("svg:not([aria-label])").count() == 0
        expect(page.get_by_role("listbox", name="Tokens of the sample")).to_be_visible()
        expect(page.get_by_role("combobox", name="Sample")).to_be_visible()
        names = tokens(page).evaluate_all("e => e.map(o => o.getAttribute('aria-label'))")
        assert all(re.fullmatch(r".+, (not stored|\d+\.\d\d nats)", name, re.DOTALL) for name in names)


def test_without_scripts_the_figures_are_there(browser: Browser, golden: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(golden.as_uri())
        expect(page.locator("noscript p")).to_be_visible()
        expect(page.locator("#viewer")).to_be_hidden()
        assert page.locator("svg.plot").count() == 4
    finally:
        context.close()


def test_a_report_without_samples(browser: Browser, tmp_path: Path) -> None:
    report(str(GOLDEN), tmp_path / "r.html", samples=0)
    with opened(browser, tmp_path / "r.html") as found:
        expect(found.page.locator("#viewer")).to_be_hidden()
        assert found.problems == []


def test_parts_of_characters_and_tokens_without_text(browser: Browser, tmp_path: Path) -> None:
    party = "🎉".encode()
    sample, logits = worded_pair(["a", party[:2], party[2:], "", "b\n", "c"])
    last = np.arange(6) == 5
    gap = replace(sample, byte_start=sample.byte_start + last, byte_end=sample.byte_end + last)
    write_cache(str(tmp_path / "c"), [[(replace(gap, text=sample.text.replace("c", "~c")), logits)]])
    report(str(tmp_path / "c"), tmp_path / "r.html")
    with opened(browser, tmp_path / "r.html") as found:
        assert found.problems == []
        assert tokens(found.page).evaluate_all("e => e.map(o => o.textContent)") == ["a", "🎉", "·", "∅", "b\n", "c"]
        assert found.page.locator("#text .gap").all_inner_texts() == ["~"]
        label = tokens(found.page).nth(2).get_attribute("aria-label")
        assert label is not None
        assert label.startswith("bytes 8e 89, ")
        tokens(found.page).nth(1).click()
        expect(found.page.locator("#panel h3")).to_contain_text("‹f0 9f›")


def test_the_manifest_of_the_attack_is_what_it_says(attacked: Path) -> None:
    manifest = read_manifest(Storage(str(attacked.parent / "cache")))
    assert manifest.provenance.notes == " ".join(ATTACKS)
