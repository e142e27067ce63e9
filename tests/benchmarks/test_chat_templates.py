from dataclasses import replace

import numpy as np
import pytest

from benchmarks.chat_templates import answer, byte_tokenizer, found_again, judge_template
from benchmarks.support.chat_oracle import REFUSED, RIGHT, WRONG, Judge
from benchmarks.support.chat_shapes import SHAPES
from support.models import CHAT_TEMPLATE


def test_a_plain_template_is_right_and_loses_calls() -> None:
    verdicts = judge_template(CHAT_TEMPLATE)
    assert len(verdicts) == len(SHAPES) >= 15
    refused = {name for name, verdict in verdicts.items() if verdict.kind == REFUSED}
    assert refused == {"one call", "parallel calls", "call with null content"}
    assert all(verdict.kind == RIGHT for name, verdict in verdicts.items() if name not in refused)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=lambda shape: shape.name)
def test_the_judge_finds_a_mask_that_is_off_by_one_byte(shape) -> None:
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    judge, right = Judge(tokenizer, shape), answer(tokenizer, shape)
    assert judge.judge(right).kind == RIGHT
    edges = np.flatnonzero(np.diff(right.mask.astype(int)))
    assert len(edges) == 2 * len(shape.learned)
    for edge in edges:
        for byte in (edge, edge + 1):
            mask = right.mask.copy()
            mask[byte] = not mask[byte]
            assert judge.judge(replace(right, mask=mask)).kind == WRONG


def test_the_judge_finds_wrong_texts_wrong_refusals_and_missing_output() -> None:
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    right = answer(tokenizer, SHAPES[0])
    assert Judge(tokenizer, SHAPES[0]).judge(replace(right, text=right.text + " ")).kind == WRONG
    assert Judge(tokenizer, SHAPES[0]).judge(replace(right, refusal="no reason")).kind == WRONG
    thoughts = next(shape for shape in SHAPES if shape.name == "thoughts in all turns")
    cut = answer(tokenizer, thoughts)
    assert cut.cut_replies == 2
    assert Judge(tokenizer, thoughts).judge(replace(cut, cut_replies=0)).kind == WRONG


def test_messages_are_found_again_but_those_with_calls() -> None:
    found = found_again(CHAT_TEMPLATE)
    assert found["several turns"] == found["weight 0"] == found["empty reply"] == "as planned"
    assert found["thoughts in all turns"] == "another that renders alike"  # the template leaves them out
    assert set(found.values()) <= {"as planned", "another that renders alike"}
    assert "one call" not in found
