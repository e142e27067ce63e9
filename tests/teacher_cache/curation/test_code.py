"""The step that keeps replies with Python."""

from support.code_cases import CASES
from support.records_to_judge import chat_record, judged, opened, text_record
from teacher_cache.curation.curation_step import LocalStep


def test_records_leave_for_what_the_rule_says() -> None:
    step = opened({"step": "code"})
    assert judged(step, *(chat_record("a", reply) for reply, _ in CASES)) == [reason for _, reason in CASES]
    assert judged(step) == []


def test_other_languages_are_counted_apart_and_may_stay() -> None:
    records = [chat_record("a", f"```{label}\n1\n```", "code") for label in ("js", "python", "rust")]
    assert judged(opened({"step": "code", "layers": ["code"]}), *records, text_record("x")) == [
        "other_language",
        "no_structure",
        "other_language",
        "",
    ]
    step = opened({"step": "code", "other_languages": "keep"})
    assert isinstance(step, LocalStep)
    assert judged(step, *records) == ["", "no_structure", ""]
    assert [record.flags for record in step.changed(records)] == [
        {"code": "other_language", "code_detail": "js"},
        {"code": "no_structure"},
        {"code": "other_language", "code_detail": "rust"},
    ]
