"""Summaries of code and answers about long documents: from files to scores, with what a model would write."""

import json
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import UserError
from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_tasks import CodeSummariesTask, LongContextTask
from trainer.matrix.tasks import written_texts
from trainer.matrix.tasks.code_summaries_task import CODE_SUMMARIES, first_line
from trainer.matrix.tasks.long_context_task import LONG_CONTEXT
from trainer.matrix.tasks.long_documents import Paper, questions
from trainer.matrix.tasks.rouge_l import rouge_l
from trainer.matrix.tasks.smoothed_bleu import smoothed_bleu

MODEL = MatrixModel(name="m", folder="m")


class Written:
    """Stands in for a model; keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
        self.texts = texts
        monkeypatch.setattr(written_texts, "written_texts", self)

    def __call__(self, task: object, model: object, backends: object, prompts: list[str], *rest: object) -> object:
        self.prompts, self.rest = prompts, rest
        return [[text] for text in self.texts]


def lines(path: Path, *items: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def test_summaries_are_compared_with_the_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"code": "def f(): 'Adds .'", "code_tokens": ["def", "f", "(", ")"], "docstring_tokens": ["Adds", "one", "."]}
    data = lines(tmp_path / "test.jsonl", one | {"repo": "a/b"}, one | {"docstring_tokens": ["It\n", "subtracts"]})
    model = Written(monkeypatch, ["\n Adds one.\nMore.", "<think>x</think>It adds"])
    task = CodeSummariesTask(kind="code-summaries", name="t", data=data, instruction="<{code}>")
    CODE_SUMMARIES.check(task)
    result = CODE_SUMMARIES.run(task, MODEL, Backends(), tmp_path)
    assert model.prompts == ["<def f ( )>"] * 2, "without the docstring, which Python's code holds"
    expected = [smoothed_bleu("Adds one.", "Adds one ."), smoothed_bleu("It adds", "It subtracts")]
    assert [item.scores["smoothed BLEU-4"] for item in result.items] == expected  # type: ignore[union-attr]
    assert [(item.id, item.cluster, item.wanted) for item in result.items] == [  # type: ignore[union-attr]
        ("0000001", "a/b", "Adds one ."),
        ("0000002", "", "It subtracts"),
    ]
    assert expected[0] == pytest.approx(100)
    (measure,) = result.measures
    assert (measure.name, measure.unit) == ("smoothed BLEU-4", "points")
    assert measure.value == pytest.approx(sum(expected) / 2)


def test_the_first_line_that_holds_something_counts() -> None:
    assert [first_line(text) for text in ("", " \n", "\n a \nb", "<think>\nno\n</think>\nyes")] == ["", "", "a", "yes"]


def test_answers_are_compared_with_the_wanted_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lines(
        tmp_path / "long.jsonl",
        {"id": "b", "prompt": "What?", "wanted": "one two", "cluster": "c"},
        {"id": "a", "document": "{document}", "wanted": "three"},
    )
    model = Written(monkeypatch, ["<think>three</think> one", "three"])
    task = LongContextTask(kind="long-context", name="t", data=data, instruction="<{document}>", max_prompt_tokens=9)
    LONG_CONTEXT.check(task)
    result = LONG_CONTEXT.run(task, MODEL, Backends(), tmp_path)
    assert model.prompts == ["What?", "<{document}>"]
    assert model.rest[-1] == 9
    found = [(item.id, item.cluster, item.answer, item.scores) for item in result.items]  # type: ignore[union-attr]
    assert found == [
        ("b", "c", "one", {"ROUGE-L": rouge_l("one", "one two")}),
        ("a", "", "three", {"ROUGE-L": 1.0}),
    ]
    assert result.measures[0].value == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"id": "a", "wanted": "x"}, "line 1: an item has either `prompt` or `document`"),
        ({"id": "a", "wanted": "x", "prompt": "", "document": ""}, "line 1: an item has either"),
        ({"id": "a", "prompt": "x"}, "line 1: wanted: this key is required"),
    ],
)
def test_items_that_cannot_be_asked_are_refused(tmp_path: Path, item: dict[str, object], message: str) -> None:
    task = LongContextTask(kind="long-context", name="t", data=lines(tmp_path / "x.jsonl", item))
    with pytest.raises(UserError, match=message):
        LONG_CONTEXT.check(task)


PAPERS = [Paper(title=f"Title {n}", abstract=f"Abstract  of\n{n}.") for n in range(50)]


def test_long_documents_hold_what_they_ask_for() -> None:
    lengths_P = np.arange(10, 60)
    made = questions(PAPERS, lengths_P, 400, 20, seed=1)
    assert made == questions(PAPERS, lengths_P, 400, 20, seed=1)
    assert made != questions(PAPERS, lengths_P, 400, 20, seed=2)
    assert len({each.wanted for each in made}) == len({each.id for each in made}) == 20
    places = []
    for each in made:
        assert each.prompt is not None
        shown = [int(part.partition("\n")[0]) for part in each.prompt.split("Title: Title ")[1:]]
        assert len({*shown}) == len(shown)
        assert 400 - 60 < sum(int(lengths_P[one]) for one in shown) <= 400
        asked = int(each.wanted.removeprefix("Abstract of ").removesuffix("."))
        assert f"titled “Title {asked}”" in each.prompt
        places.append(shown.index(asked) / len(shown))
    assert places == sorted(places)
    assert places[0] < 0.1
    assert places[-1] > 0.8


def test_too_few_papers_are_an_error() -> None:
    lengths_P = np.full(50, 10)
    with pytest.raises(UserError, match=r"^--tokens 1000: all papers have 500 tokens together"):
        questions(PAPERS, lengths_P, 1000, 2, 0)
    with pytest.raises(UserError, match=r"^--items 51: there are 50 papers"):
        questions(PAPERS, lengths_P, 100, 51, 0)
