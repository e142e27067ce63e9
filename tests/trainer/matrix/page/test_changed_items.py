"""Which items a page shows of a pair, and how many bytes they take."""

from typing import Any

import pytest

from support.matrix_results import MadeModel, MadeResults, MadeTask, made_results
from teacher_cache.pages.frame import inert_json
from trainer.matrix.page.changed_items import MOST_ITEMS, changed_items
from trainer.matrix.page.shown import Shown

MODELS = [MadeModel("teacher", 0.2), *(MadeModel(f"s{seed}", 0.02 * seed, "student", seed) for seed in (1, 2, 3))]
TASKS = [MadeTask("t", items=200), MadeTask("loss", unit="nats", higher_is_better=False, items=50)]


@pytest.fixture(scope="module")
def made() -> MadeResults:
    return made_results(MODELS, TASKS)


def chosen(made: MadeResults, most_bytes: int = 10**6, most_pairs: int = 1000) -> dict[str, Any]:
    return changed_items(Shown(made.comparison, most_pairs, 99), made.cells, made.items, most_bytes)


def test_texts_and_scores_are_those_of_the_items(made: MadeResults) -> None:
    data = chosen(made)
    pair = next(pair for pair in made.comparison.pairs if pair.task == "t")
    (found,) = [each for each in data["pairs"] if each[:3] == [0, 1, 0]]
    assert found[3:5] == [pair.a_better, pair.b_better]
    assert len(found[5]) == MOST_ITEMS
    items = {name: {item.id: item for item in made.items[name, "t"]} for name in ("teacher", "s1", "s2", "s3")}
    for place in found[5]:
        text = data["texts"][0][place]
        item = items["teacher"][text["id"]]
        assert text["id"] in pair.changed
        assert (text["prompt"], text["wanted"]) == (item.prompt, item.wanted)
        assert text["by"]["0"] == [[item.scores["accuracy"]], item.answer]
        scores = [items[name][text["id"]].scores["accuracy"] for name in ("s1", "s2", "s3")]
        assert text["by"]["1"] == [scores, items["s1"][text["id"]].answer]


def test_both_kinds_of_change_are_shown_in_the_order_of_the_comparison(made: MadeResults) -> None:
    data = chosen(made)
    pair = next(pair for pair in made.comparison.pairs if pair.task == "t")
    (places,) = [each[5] for each in data["pairs"] if each[:3] == [0, 1, 0]]
    texts = [data["texts"][0][place] for place in places]
    first_better = [text["by"]["0"][0][0] > sum(text["by"]["1"][0]) / 3 for text in texts]
    assert first_better[:4] == [True, False, True, False]
    for wanted in (True, False):
        ids = [text["id"] for text, better in zip(texts, first_better, strict=True) if better == wanted]
        assert ids == sorted(ids, key=pair.changed.index)


def test_each_cells_items_are_read_once(made: MadeResults) -> None:
    made.items.asked.clear()
    chosen(made)
    names = [(model.name, task.name) for task in TASKS for model in MODELS]
    assert sorted(made.items.asked) == sorted(names)
    made.items.asked.clear()
    assert chosen(made, most_pairs=0)["pairs"] == []
    assert made.items.asked == []


@pytest.mark.parametrize("most_bytes", [0, 3000, 20_000, 500_000])
def test_the_bytes_are_bounded_and_every_pair_gets_its_share(most_bytes: int) -> None:
    long = "<&\u2028" * 3000
    models = [MadeModel(f"m{n}", 0.05 * n, answer=f"{n} {long}{{}}") for n in range(4)]
    tasks = [MadeTask(f"t{n}", prompt=f"{{}} {long}", items=40) for n in range(6)]
    data = chosen(made_results(models, tasks), most_bytes)
    empty = chosen(made_results(models, tasks), 0)
    added = len(inert_json(data).encode()) - len(inert_json(empty).encode())
    assert added <= most_bytes
    shown = [len(pair[5]) for pair in data["pairs"]]
    assert max(shown) - min(shown) <= 2
    assert (min(shown) > 0) == (most_bytes == 500_000)
    assert added > most_bytes - 30_000


def test_an_item_that_some_models_lack(made: MadeResults) -> None:
    results = made_results(MODELS[:2], [MadeTask("t", items=20)])
    pair = results.comparison.pairs[0].model_copy(update={"changed": ["nowhere", *results.comparison.pairs[0].changed]})
    comparison = results.comparison.model_copy(update={"pairs": [pair]})
    data = changed_items(Shown(comparison, 9, 9), results.cells, results.items, 10**5)
    assert "nowhere" not in [text["id"] for text in data["texts"][0]]
    assert data["pairs"][0][5]
