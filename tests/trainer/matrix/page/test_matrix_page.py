"""What the page says, without a browser."""

import itertools
import re
from html import unescape

import pytest

from support.hostile import ALL
from support.matrix_results import MadeModel, MadeResults, MadeTask, made_results, made_teachers
from teacher_cache.pages.page_text import shown_text
from trainer.matrix.page.matrix_page import MOST_BYTES, matrix_page
from trainer.matrix.page.shown import MOST_SIDES, MOST_TASKS

MODELS = [MadeModel("teacher", 0.25), MadeModel("a", 0.1), MadeModel("b", 0.1)]
TASKS = [
    MadeTask("quiz", chance=0.25),
    MadeTask("far", "reasoning", items=400),
    MadeTask("kl", "teacher", "kl", unit="nats", higher_is_better=False, kind="distillation",
             more={"bits_per_byte": (0.8, "bits")}),
    MadeTask("speed", "speed", "seconds p50", 1.5, "speed", 0, "s", higher_is_better=False,
             more={"tokens/s": (900.0, "tokens/s")}),
]  # fmt: skip


@pytest.fixture(scope="module")
def made() -> MadeResults:
    return made_results(MODELS, TASKS, notes=["mind the <gap>"])


@pytest.fixture(scope="module")
def page(made: MadeResults) -> str:
    return matrix_page(made.cells, made.items, made.comparison)


def texts(page: str) -> str:
    """All text of the page, without its markup."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_verdicts_stand_first_in_the_comparisons_words(made: MadeResults, page: str) -> None:
    said = texts(page[page.index("<main>") : page.index('id="abilities"')])
    places = []
    for pair in sorted(made.comparison.pairs, key=lambda pair: pair.verdict == "cannot tell"):
        assert pair.words in said
        places.append(said.index(pair.words))
    assert places == sorted(places)
    decided = sum(pair.verdict != "cannot tell" for pair in made.comparison.pairs)
    assert 0 < decided < len(places)
    assert f"Differences that are real {decided} " in said
    assert f"Cannot tell {len(places) - decided} " in said
    assert "mind the <gap>" in said


def test_tables_have_every_estimate_and_pair(made: MadeResults, page: str) -> None:
    said = texts(page)
    for estimate in [*made.comparison.estimates, *made.comparison.cells]:
        assert estimate.words in said
    rows = re.findall(r"<tr data-verdict=.*?</tr>", page)
    assert len(rows) == len(made.comparison.pairs) == 9
    assert said.count("135 M 270.0 MB") == 3
    for cell in made.cells:
        assert cell.model.digest in page
        assert cell.task.digest in page
    assert "torch 2.11.0" in said


def test_plots_of_abilities_and_costs(page: str) -> None:
    titles = re.findall(r'<svg class="plot" [^>]*aria-label="([^"]*)"', page)
    assert titles[:3] == ["accuracy on quiz", "accuracy on far", "kl on kl"]
    assert titles[3:] == [
        f"Mean quality by {name}" for name in ("Size on disk", "Parameters", "seconds p50", "tokens/s")
    ]
    assert "guessing 25.0 %" in page
    assert page.count('class="chance"') == 1


def test_the_page_is_the_same_every_time(made: MadeResults, page: str) -> None:
    assert matrix_page(made.cells, made.items, made.comparison) == page


def test_what_the_teachers_differ_in(made: MadeResults, page: str) -> None:
    assert "What the teachers differ in" not in page
    said = texts(matrix_page(made.cells, made.items, made.comparison, made_teachers()))
    assert "1,234 samples, 56,789 rows; entropy exact." in said
    assert "Figure A: PRO B: Flash entropy, nats 1.7500 1.5000 effective support, tokens 20.0 20.0" in said
    assert "probability of decorative tokens 0.125% 0.125% perplexity of the texts 9.50 11.25" in said
    assert "B − A: entropy, nats −0.2500 standard error, over samples unknown" in said
    assert "KL(A ‖ B), nats, at least 0.5000 KL(B ‖ A), nats, at least 0.3750" in said


def test_versions_that_differ_are_counted(made: MadeResults) -> None:
    cells = [made.cells[0].model_copy(update={"versions": {"torch": "2.12.0"}}), *made.cells[1:]]
    assert "torch 2.12.0 (1 cells), 2.11.0 (11 cells)" in texts(matrix_page(cells, made.items, made.comparison))


def test_one_model_alone() -> None:
    made = made_results(MODELS[:1], TASKS)
    page = matrix_page(made.cells, made.items, made.comparison)
    said = texts(page)
    assert "<h1>1 model on 4 tasks</h1>" in page
    assert "There is nothing to compare" in said
    assert "Items that changed" not in said
    assert made.items.asked == []


def test_seeds_of_an_arm_are_rows_and_dots() -> None:
    made = made_results([MODELS[0], *(MadeModel(f"s{n}", arm="arm", seed=n) for n in (1, 2))], TASKS[:2])
    page = matrix_page(made.cells, made.items, made.comparison)
    assert page.count('class="seed"') == 4
    assert page.count('class="of-arm"') == 2
    assert "3 models on 2 tasks" in page
    assert "models, 2 arms" in page


def test_a_cell_that_failed_leaves_a_gap(made: MadeResults) -> None:
    gone = ("a", "far")
    comparison = made.comparison.model_copy(
        update={
            "cells": [each for each in made.comparison.cells if (each.name, each.task) != gone],
            "estimates": [each for each in made.comparison.estimates if (each.name, each.task) != gone],
            "pairs": [each for each in made.comparison.pairs if each.task != "far" or "a" not in (each.a, each.b)],
        }
    )
    cells = [cell for cell in made.cells if (cell.model.name, cell.task.name) != gone]
    page = matrix_page(cells, made.items, comparison)
    assert page.count("<tr data-verdict=") == 7
    assert "Mean quality: of quiz, each" in page  # the one that all have


def test_ten_models_on_twenty_tasks_fit() -> None:
    """With texts as long as they get, and all pairs with many changed items."""
    long = "A long answer, “quoted” & <marked>. " * 200
    models = [MadeModel(f"model {n}", 0.03 * n, answer=f"{n}: {long} {{}}") for n in range(10)]
    tasks = [MadeTask(f"task {n}", f"ability {n % 6}", prompt=f"{{}} {long}", items=60) for n in range(20)]
    made = made_results(models, tasks)
    page = matrix_page(made.cells, made.items, made.comparison)
    assert 1_500_000 < len(page.encode()) <= MOST_BYTES == 2_000_000
    assert page.count("<tr data-verdict=") == len(made.comparison.pairs) == 45 * 20


def test_more_than_fits_is_left_out_and_said() -> None:
    """Names and words of hostile characters, which take six bytes each."""
    odd = '"' * 70
    tasks = [MadeTask(f"{odd}{n}", odd, items=0, measure=odd) for n in range(MOST_TASKS + 1)]
    models = [MadeModel(f"{odd}{n}") for n in range(MOST_SIDES + 1)]
    made = made_results(models, tasks)
    few = made_results(models, [MadeTask(f"{odd}0", items=3)])
    pairs = [pair.model_copy(update={"words": odd * 40}) for pair in few.comparison.pairs]
    comparison = made.comparison.model_copy(update={"pairs": pairs})
    page = matrix_page(made.cells, few.items, comparison)
    assert len(page.encode()) <= MOST_BYTES
    said = texts(page)
    assert f"{MOST_SIDES} of {MOST_SIDES + 1} models and arms are on this page; the JSON has all." in said
    assert f"{MOST_TASKS} of {MOST_TASKS + 1} tasks are on this page" in said
    assert re.search(rf"\d+ of {len(pairs):,} comparisons are on this page", said)


def test_an_arm_of_very_many_seeds_and_very_many_notes() -> None:
    models = [MadeModel(f"s{n}", arm="arm", seed=n) for n in range(256)]
    made = made_results([*models, MadeModel("b")], [MadeTask("t", items=9)], notes=["note"] * 30)
    page = matrix_page(made.cells, made.items, made.comparison)
    said = texts(page)
    assert page.count('class="of-arm"') == page.count('class="seed"') == 100
    assert "101 of 257 models are on this page; the JSON has all." in said
    assert page.count("<bdi>note</bdi>") == 20
    assert "10 more notes are in the JSON." in said


def test_control_characters_are_made_visible() -> None:
    assert shown_text("a\u202eb\x00c\nd\te") == "a\\u202eb\\x00c\nd\te"
    assert shown_text("\ud800") == "\\ud800"
    assert shown_text("x" * 100, 10) == "x" * 10 + " …"
    made = made_results([MadeModel("\u202ea"), MadeModel("b", answer="\u202e\u2028{}")], [MadeTask("t\u2066", items=9)])
    page = matrix_page(made.cells, made.items, made.comparison)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\u2029\x00]", page)


def test_nothing_hostile_is_markup() -> None:
    text = ALL.replace("{", "{{").replace("}", "}}")
    made = made_results(
        [MadeModel(ALL + "1", answer=text), MadeModel(ALL + "2", arm=ALL, seed=1)],
        [MadeTask(ALL, ALL, ALL, prompt=text, cluster=ALL, more={ALL + "x": (1.0, ALL)})],
        notes=[ALL],
    )
    page = matrix_page(made.cells, made.items, made.comparison, made_teachers(ALL, ALL))
    assert len(re.findall("<script", page)) == len(re.findall("</script", page)) == 2
    assert "<img" not in page.lower()
    assert "<b " not in page
    assert "49" not in texts(page[: page.index("<main>")])  # {{ 7*7 }} is text
    assert list(itertools.islice(re.finditer(r'href="(?!#|data:,)', page), 1)) == []
