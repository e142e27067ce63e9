import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.matrix.tasks.rouge_l import common_subsequence, rouge_l

WORDS = st.lists(st.sampled_from("abcd"), max_size=90)


def by_table(first: list[str], second: list[str]) -> int:
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, one in enumerate(first, 1):
        for j, other in enumerate(second, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if one == other else max(table[i - 1, j], table[i, j - 1])
    return int(table[-1, -1])


@given(WORDS, WORDS)
def test_the_longest_common_subsequence_is_that_of_the_table(first: list[str], second: list[str]) -> None:
    assert common_subsequence(first, second) == by_table(first, second)


@pytest.mark.parametrize(
    ("written", "wanted", "expected"),
    [
        ("the cat sat", "The cat, it sat.", 6 / 7),
        ("police kill the gunman", "police killed the gunman", 3 / 4),  # Lin 2004, section 3.1
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("", "a", 0.0),
        ("a", "b", 0.0),
        ("我喜欢猫", "我很喜欢猫", 8 / 9),
        ("使用Python编程", "用 python 编 程", 8 / 9),
        ("snake_case", "snake case", 1.0),
    ],
)
def test_known_values(written: str, wanted: str, expected: float) -> None:
    assert rouge_l(written, wanted) == pytest.approx(expected)
