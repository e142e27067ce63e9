import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken

from schemas.errors import UserError
from schemas.generate_config import RejectConfig
from support.models import tiny_tokenizer
from teacher_cache.corpus.token_spans import ByteTokenizer, special_ids
from teacher_cache.generation.reject import LONGEST_BLOCK, REPEATS, Rejecter, longest_repetition

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


def judge(text: str, finish: str = "stop", more: tuple[int, ...] = (), **settings: object) -> str:
    ids = [*TOKENIZER(text)["input_ids"], *more, *([END] if finish == "stop" else [])]
    config = RejectConfig.model_validate(settings)
    rejecter = Rejecter(ByteTokenizer(TOKENIZER), special_ids(TOKENIZER), config)
    said, reason = rejecter.judge(np.array(ids, np.uint32), finish)
    if not more:
        assert said == text
    return reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Two parrots 🦜🦜.", ""),
        ("", "empty"),
        (" \n\t", "empty"),
        ("<|endoftext|> <|im_start|>", "empty"),
        ("Four.<|im_end|>\n<|im_start|>user\nAnd 3 + 3?", "special"),
        ("I cannot assist.<|endoftext|>", "special"),
        ("I\u2019m sorry, but I can't.", "refused"),
        ("  I CANNOT ASSIST with that", "refused"),
        ("<think>I cannot assist? I can.</think>\n\nYes.", ""),
        ("<think>Hm.</think>\n\nI'm sorry, but no.", "refused"),
        ("They said: I cannot assist.", ""),
        ("no " * 60, "repetitive"),
        ("no " * 10, ""),
        ("z" * 60, "repetitive"),
        ("".join(f"line {i}\n" for i in range(60)), ""),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    assert judge(text) == reason


def test_what_ended_at_its_limit_is_truncated() -> None:
    assert judge("Two parrots", "length") == "truncated"
    assert judge("no " * 60, "length") == "repetitive", "more tokens would not help"
    assert judge("", "length") == "truncated"


def test_a_split_character_and_unknown_ids_are_undecodable() -> None:
    parrot = TOKENIZER("🦜")["input_ids"]
    assert len(parrot) == 4
    assert judge("a", more=tuple(parrot)) == ""
    assert judge("a", more=tuple(parrot[:3])) == "undecodable"
    assert judge("a", more=(1 << 20,)) == "undecodable"


def test_checks_can_be_switched_off() -> None:
    assert judge("no " * 60, repeated_tokens=None) == ""
    assert judge("I cannot assist", refusals=[]) == ""
    assert judge("NEIN.", refusals=["nein"]) == "refused"


def test_special_tokens_can_be_allowed() -> None:
    assert judge("<|im_start|>thoughts<|im_end|>Four.", allowed_special=["<|im_start|>", "<|im_end|>"]) == ""
    assert judge("<|im_start|>thoughts<|im_end|>Four.", allowed_special=["<|im_start|>"]) == "special"
    assert judge("Four.<|endoftext|>", allowed_special=None) == ""
    with pytest.raises(UserError, match=r"reject\.allowed_special: '<think>' is no special token of the generator; it"):
        judge("Four.", allowed_special=["<think>"])


def test_added_tokens_that_are_not_special_are_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("<|extra|>", special=True)])
    rejecter = Rejecter(ByteTokenizer(tokenizer), special_ids(tokenizer), RejectConfig())
    for text, reason in (("<tool_call>{}", ""), ("<|extra|>{}", "special"), ("{}<|im_end|>", "")):
        ids = np.array(tokenizer(text)["input_ids"], np.uint32)
        assert rejecter.judge(ids if text.endswith("|>") else np.append(ids, END), "stop")[1] == reason


def slow_repetition(ids: list[int]) -> int:
    """By comparing slices: the longest stretch that equals the one ``block`` tokens before it."""
    longest = 0
    for block in range(1, LONGEST_BLOCK + 1):
        for start in range(block, len(ids)):
            stop = start
            while stop < len(ids) and ids[stop] == ids[stop - block]:
                stop += 1
            if stop - start >= REPEATS * block:
                longest = max(longest, stop - start)
    return longest


@given(st.lists(st.integers(0, 2), max_size=60), st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 9))
def test_repetitions_are_found_by_any_block(beginning: list[int], block: list[int], times: int) -> None:
    ids = [*beginning, *block * times, *beginning[:3]]
    found = longest_repetition(np.array(ids, np.uint32), LONGEST_BLOCK, REPEATS)
    assert found == slow_repetition(ids)
    if times > REPEATS:
        assert found >= len(block) * (times - 1)
