"""Text that was decoded wrongly is repaired where it may be, and nothing else is changed."""

import pytest

from benchmarks.support.two_kinds import texts
from support.records_to_judge import chat_record, judged, opened, reply_record, text_record
from teacher_cache.curation.curation_step import LocalStep

BROKEN = {"Itâ€™s a cafÃ©": "It’s a café", "æˆ‘ä»¬": "我们", "l’Ã©tÃ© 中文": "l’été 中文"}
WHOLE = ["It’s naïve — “façade”", "我们, été", "&lt;b&gt; ﬁn ① \x0c"[:-1], "plain\r\ntext", "ＡＢＣ"]


def step(**settings: object) -> LocalStep:
    found = opened({"step": "broken_text", **settings})
    assert isinstance(found, LocalStep)
    return found


@pytest.mark.parametrize("broken", BROKEN)
def test_wrong_decoding_is_undone(broken: str) -> None:
    (record,) = step().changed([chat_record(broken, f"Yes. {broken}")])
    assert (record.prompt, record.reply) == (BROKEN[broken], f"Yes. {BROKEN[broken]}")
    assert step().reasons([record]) == [""]
    assert judged(step(mojibake="drop"), chat_record(broken, "Yes."), text_record(broken)) == ["mojibake"] * 2


def test_generated_replies_leave_instead() -> None:
    (broken, repaired), *_ = BROKEN.items()
    records = [reply_record("a", broken), reply_record(broken, "a"), reply_record("a", repaired)]
    assert step().changed(records) == records
    assert judged(step(), *records) == ["mojibake", "mojibake", ""]


@pytest.mark.parametrize("text", WHOLE)
def test_other_texts_are_left_alone(text: str) -> None:
    record = text_record(text)
    assert step().changed([record]) == [record]
    assert judged(step(mojibake="drop"), record) == [""]


def test_real_texts_are_left_alone() -> None:
    records = [text_record(text.replace("\x0c", "")) for kind in texts().values() for text in kind.values()]
    assert sum(new is not old for new, old in zip(step().changed(records), records, strict=True)) == 0


def test_lost_and_control_characters() -> None:
    lost, control = text_record("a" * 99 + "\ufffd"), text_record("a" * 49 + "\x00\n")
    assert judged(step(), lost, control, text_record("a\tb\n")) == [
        "replacement_characters",
        "control_characters",
        "",
    ]
    allowed = {"max_replacement_share": 0.01, "max_control_share": 0.02}
    assert judged(step(**allowed), lost, control, text_record("a" * 98 + "\ufffd\x00")) == ["", "", ""]
    assert judged(step(**allowed), text_record("a" * 97 + "\ufffd"), text_record("a" * 48 + "\x00")) == [
        "replacement_characters",
        "control_characters",
    ]
