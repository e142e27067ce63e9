"""Sets of word 5-grams."""

from itertools import pairwise

import numpy as np
import pytest

from teacher_cache.curation.shingles import N, hashed_shingles, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat, the CAT's hat!", ["the", "cat", "the", "cat", "s", "hat"]),
        ("Größe STRASSE", ["grösse", "strasse"]),
        ("今天天气很好", ["今", "天", "天", "气", "很", "好"]),
        ("GPT模型 v2", ["gpt", "模", "型", "v2"]),
        ("ภาษาไทย", list("ภาษาไทย")),
        ("한국어 문장", ["한국어", "문장"]),
        ("\u2028 … !\n?", ["…!?"]),
        ("", [""]),
    ],
)
def test_words_are_letters_and_digits_and_characters_of_unspaced_scripts(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def grams(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[at : at + N]) for at in range(max(1, len(words) - N + 1))}


def test_hashes_are_equal_where_ngrams_are() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["a", "b", "c"], rng.integers(0, 30))) for _ in range(300)] + [
        "",
        "!",
        "?",
        "一二三四五六",
    ]
    hashes_H, offsets, hash_M = hashed_shingles(texts)
    found = [{*hashes_H[start:end].tolist()} for start, end in pairwise(offsets.tolist())]
    wanted = [grams(text) for text in texts]
    assert [len(each) for each in found] == [len(each) for each in wanted]
    name: dict[tuple[str, ...], int] = {}
    for text, each in zip(texts, found, strict=True):
        words = words_of(text)
        alone, _, _ = hashed_shingles([text])
        assert {*alone.tolist()} == each, "a text's hashes do not depend on the others"
        for at, value in enumerate(alone.tolist()):
            gram = tuple(words[at : at + N])
            assert name.setdefault(gram, value) == value
    assert len({*name.values()}) == len(name)
    assert (hash_M[0] == hash_M[1:]).sum() == sum(words_of(text) == words_of(texts[0]) for text in texts[1:])
