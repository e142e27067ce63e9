"""Flags of reasoning, and what leaves for want of them."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from schemas.errors import UserError
from support.reasoning_cases import CASES, GOOD, PROMPT, chain
from support.records_to_judge import chat_record, judged, opened, reply_record, text_record
from teacher_cache.curation import check_reasoning
from teacher_cache.curation.check_reasoning import python_of
from teacher_cache.curation.conclusions import says
from teacher_cache.curation.curation_step import LocalStep
from teacher_cache.curation.record import Record, of_reply
from teacher_cache.curation.record_rows import from_row, to_row


def step(**settings: Any) -> LocalStep:
    opened_step = opened({"step": "reasoning", **settings}, ("base", "reasoning"))
    assert isinstance(opened_step, LocalStep)
    return opened_step


def about(reply: str, prompt: str = PROMPT) -> Record:
    return chat_record(prompt, reply, "reasoning")


def flags(made: LocalStep, *records: Record) -> list[dict[str, Any]]:
    return [dict(record.flags) for record in made.changed(records)]


@pytest.mark.parametrize(("flag", "reply", "expected"), CASES)
def test_flags(flag: str, reply: str, expected: bool) -> None:
    (found,) = flags(step(), about(reply))
    assert found[flag] is expected


def test_there_are_as_many_cases_as_promised() -> None:
    assert len({(flag, reply) for flag, reply, _ in CASES}) == len(CASES) >= 60
    assert {(flag, expected) for flag, _, expected in CASES} == {
        (flag, expected) for flag in ("format", "independent", "consistent", "computed") for expected in (True, False)
    }


def test_the_first_required_flag_that_is_missing_is_the_reason() -> None:
    wrong = chain(answers=("As the draft says, 3 × 17 = 41", "32"))
    records = [about(GOOD), about("x"), about(wrong), text_record("of another layer")]
    assert judged(step(), *records) == ["", "no_chain", "not_independent", ""]
    assert judged(step(require=["computed", "format"]), *records) == ["", "no_chain", "miscalculated", ""]
    assert judged(step(require=[]), *records) == [""] * 4
    assert judged(step(layers=None), *records)[-1] == "no_chain"
    assert flags(step(), *records)[1] == {"format": False, "independent": False, "consistent": False, "computed": True}
    assert flags(step(), *records)[-1] == {}


@pytest.mark.parametrize(
    "final",
    [
        "9" * 10_000,
        "The answer is " + "9" * 10_000,
        "1/0",
        "\\boxed{" * 10_000,
        "The answer is " + "a b " * 30_000,
        "```\n" * 20_000 + "> " * 20_000,
    ],
    ids=range(6),
)
def test_hostile_conclusions_take_little_time(final: str) -> None:
    started = time.process_time()
    (found,) = flags(step(), about(chain(final=final, answers=(final, "a b " * 30_000))))
    assert found["format"]
    python_of(final)
    assert time.process_time() - started < 5
    assert not says(final, "9" * 10_000), "too long to be compared"


def test_answers_that_were_asked_for_without_the_draft_are_independent_whatever_they_say() -> None:
    quoting = chain(answers=("Three boxes of 17 pens are 41 pens. Without 9", "32"))
    record = reply_record(PROMPT, quoting, "reasoning")
    content: Any = record.content
    in_stages = of_reply(content._replace(reply=replace(content.reply, made="chain_of_verification")))
    read_again = from_row(to_row(in_stages), "here")
    assert [found["independent"] for found in flags(step(), record, in_stages, read_again)] == [False, True, True]


def write(path: Path, *records: dict[str, Any]) -> dict[str, str]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"path": str(path)}


def test_answers_are_compared_with_gold_ones(tmp_path: Path) -> None:
    known = {"Half?": "\\frac{1}{2}", "Pens?": "3 × 17 = 51, and\n#### 1,042", "Capital?": "Paris", "Age?": 7}
    gold = write(tmp_path / "gold.jsonl", *({"prompt": asked, "answer": answer} for asked, answer in known.items()))
    replies = {
        ("Half?", "It is 0.5"): True,
        ("  Half?\n", "\\boxed{\\frac{2}{4}}"): True,
        ("Half?", "0.25"): False,
        ("Pens?", chain(final="There are 1042.")): True,
        ("Pens?", chain(final="There are 42.")): False,
        ("Capital?", "The answer is Paris."): True,
        ("Capital?", "Paris is nice, but the answer is Lyon."): False,
        ("Capital?", "The answer is Paris or Lyon."): False,
        ("Age?", "<think>9</think>7"): True,
        ("Age?", "\\boxed{9^{9^{9^9}}}"): False,
        ("Age?", "\\boxed{__import__('os').system('false')}"): False,
        ("Age?", "seven"): False,
    }
    made = step(require=["gold"], gold=gold)
    records = [about(reply, asked) for asked, reply in replies]
    flagged = made.changed([*records, about("7", "Who?"), text_record("of another layer")])
    assert [record.flags.get("gold") for record in flagged] == [*replies.values(), None, None]
    reasons = ["" if equal else "not_gold" for equal in replies.values()]
    assert made.reasons(flagged) == [*reasons, "gold_unknown", ""]


def test_replies_pass_tests_or_do_not(tmp_path: Path) -> None:
    tests = write(tmp_path / "tests.jsonl", {"prompt": "Add one.", "tests": "assert f(1) == 2"})
    made = step(require=["executed"], executed=tests)
    replies = {
        "Here:\n```python\ndef f(x):\n    return x + 1\n```\nDone.": "",
        "def f(x): return x + 1": "",
        "```js\nf = x => x + 1\n```\n\n```\ndef f(x): return x + 1\n```": "",
        "```python\ndef f(x):\n    return x\n```": "fails_tests",
        "I cannot.": "fails_tests",
        "": "fails_tests",
    }
    records = [about(reply, "Add one.") for reply in replies]
    assert judged(made, *records) == list(replies.values())
    assert judged(made, about("x", "Add two.")) == ["tests_unknown"]


def test_code_of_replies_is_not_run_unless_tests_are_given(tmp_path: Path) -> None:
    reply = chain(final=f"```python\nopen({str(tmp_path / 'ran')!r}, 'w')\n```")
    gold = write(tmp_path / "gold.jsonl", {"prompt": PROMPT, "answer": "42", "tests": ""})
    with mock.patch.object(check_reasoning, "passes", side_effect=AssertionError("run")):
        (found,) = flags(step(gold=gold), about(reply))
    assert "executed" not in found
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match=r"require: executed runs code of the replies; set executed\.path"):
        step(require=["executed"])
    with pytest.raises(UserError, match=r"require: gold needs known answers"):
        step(require=["gold"])


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"question": "a", "answer": "b"}],
            "gold.jsonl:1: `prompt` is NoneType None, wanted a text; name another field",
        ),
        ([{"prompt": "a", "answer": ["b"]}], "gold.jsonl:1: `answer` is list ['b'], wanted a text"),
        (
            [{"prompt": "a", "answer": "b"}, {"prompt": " a", "answer": "c"}],
            "gold.jsonl:2: another `answer` than before for the same `prompt`",
        ),
    ],
)
def test_files_that_cannot_be_used_are_errors(tmp_path: Path, records: list[dict[str, Any]], message: str) -> None:
    gold = write(tmp_path / "gold.jsonl", *records)
    with pytest.raises(UserError) as caught:
        flags(step(gold=gold), about(GOOD))
    assert str(caught.value).startswith("steps.0.gold: ")
    assert message in str(caught.value)


def test_other_answers_are_another_curation(tmp_path: Path) -> None:
    gold = write(tmp_path / "gold.jsonl", {"prompt": "a", "answer": "b"})
    before = step(gold=gold).fingerprint()
    assert len(bytes.fromhex(before)) == 32
    assert before == step(gold=gold).fingerprint() != step(executed=gold).fingerprint()
    write(tmp_path / "gold.jsonl", {"prompt": "a", "answer": "c"})
    assert step(gold=gold).fingerprint() != before
    assert step().fingerprint() == ""
