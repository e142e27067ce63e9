import pytest

from teacher_cache.generated.verification_chain import Chain, parse_chain

CHAIN = Chain("It is 41.", ("What is 3 × 17?", "Is it odd?"), ("51,\nthat is:\n\nfifty-one", "Yes."), "It is 51.")


def test_what_is_written_is_read() -> None:
    assert parse_chain(CHAIN.text()) == CHAIN
    assert parse_chain(f"<think>a <draft></think>\n\n{CHAIN.text()}\n") == CHAIN


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<draft>", ""),
        ("</questions>", ""),
        ("It is 41.", ""),
        ("It is 51.", " \n"),
        ("<draft>", "So: <draft>"),
        ("</final>", "</final> Done."),
        ("<answers>", "<final>x</final><answers>"),
        ("It is 41.", "It is </answers> 41."),
        ("A2: Yes.", ""),
        ("A2: Yes.", "A3: Yes."),
        ("A2: Yes.", "A2:"),
        ("Q1: ", "First: Q1: "),
        ("Q2: ", "A2: "),
        ("<draft>", "<answers>"),
    ],
)
def test_a_part_that_is_missing_or_out_of_place_is_no_chain(old: str, new: str) -> None:
    text = CHAIN.text()
    assert old in text
    assert parse_chain(text.replace(old, new, 1)) is None


def test_parts_in_another_order_are_no_chain() -> None:
    text = CHAIN.text()
    assert parse_chain(text.replace("questions", "x").replace("answers", "questions").replace("x", "answers")) is None
