"""Decoration by examples: every kind, and its look-alike."""

import numpy as np
import pytest

from support.worded import worded_sample
from tools.looking.decoration import DecorativeIds, decoration, decorative_tokens


def marked(text: str) -> str:
    return "".join(c if found else "." for c, found in zip(text, decoration(text).tolist(), strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**Note** it", "**....**..."),
        ("*so* x", "*..*.."),
        ("x ** 2 and y ** 2", "................."),
        ("x**2 + y**2", "..........."),
        ("f(*a, **b)", ".........."),
        ("use `len` now", "....`...`...."),
        ("## Title", "##......"),
        ("# comment", "........."),
        ("  - item", "..-....."),
        ("x - y", "....."),
        ("> said", ">....."),
        (">>> x", "....."),
        ("-----", "-----"),
        ("--", ".."),
        ("| a | b |", "|...|...|"),
        ("|---|:-:|", "|---|:-:|"),
        ("a | b", "....."),
        ("tea ☕ 🎉", "....☕.🎉"),
        ("é → 東 ⌈x⌉", "........."),
        ("┌─┐ • ✅", "┌─┐.•.✅"),
        ("```py\n- x\n## y\n```\n- z", "```............```.-.."),
        ("```py\n- x\n```<|im_end|>\n- z", "```.......```...........-.."),
        ("```py\n- x", "```......"),
        ("", ""),
    ],
)
def test_marks(text: str, expected: str) -> None:
    assert marked(text) == expected


def test_a_token_is_decorative_if_all_that_is_visible_of_it_is() -> None:
    pieces = ["**", "Note", "**", " ", " **", "a", "**", "b", " 🎉", "🎉!", "\n", "- ", "x"]
    found = decorative_tokens(worded_sample(pieces))
    assert [piece for piece, flag in zip(pieces, found, strict=True) if flag] == ["**", "**", " 🎉", "- "]


def test_parts_of_an_emoji_are_decorative_and_parts_of_a_letter_are_not() -> None:
    party, kanji = "🎉".encode(), "東".encode()
    found = decorative_tokens(worded_sample([party[:2], party[2:], kanji[:1], kanji[1:]]))
    assert found.tolist() == [True, True, False, False]


def test_tokens_without_bytes_are_not_decorative() -> None:
    assert decorative_tokens(worded_sample(["", "- ", "", "x"])).tolist() == [False, True, False, False]


def test_an_id_is_decorative_if_it_mostly_is() -> None:
    ids = DecorativeIds(8)
    ids.add(worded_sample(["- ", "x", "\n", "- ", "y"], ids=[1, 2, 3, 1, 4]))
    ids.add(worded_sample(["x ", "- ", "x"], ids=[2, 1, 5]))
    assert ids.flags().tolist() == [False, True, *[False] * 6]
    ids.add(worded_sample(["a ", "- ", "- ", "x"], ids=[6, 1, 1, 7]))
    assert not ids.flags().any()


def test_a_long_line_of_marks_takes_no_time() -> None:
    for text in (
        "*" * 200_000,
        "`" * 200_000,
        "|" * 100_000 + "x",
        " " * 200_000 + "x",
        "**a " * 50_000,
        "`a " * 50_000,
    ):
        assert decoration(text).shape == (len(text),)


def test_flags_are_by_character_not_by_byte() -> None:
    assert np.flatnonzero(decoration("é🎉é- ")).tolist() == [1]
