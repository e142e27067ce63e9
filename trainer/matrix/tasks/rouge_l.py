"""ROUGE-L (W04-1013): how much of a wanted text is in a written one, in order.

Written here, since the published package drops every character that is not of English: Chinese and Japanese count by
characters here, Korean by syllables.
"""

import re

_CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}]+")


def rouge_l(written: str, wanted: str) -> float:
    """The F1 of the longest common subsequence of words, in [0, 1]; case and punctuation do not count."""
    words, reference = _WORD.findall(written.lower()), _WORD.findall(wanted.lower())
    common = common_subsequence(words, reference)
    return 2 * common / (len(words) + len(reference)) if common else 0.0


def common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, by bits of one integer for all words (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    row = every  # a 0 where the length grows
    for word in second:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & every
    return len(first) - row.bit_count()
