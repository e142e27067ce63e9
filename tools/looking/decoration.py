"""Decorative tokens: formatting and ornament, as opposed to content.

A character is *decoration* if it is

- an emoji, a dingbat, a box-drawing, block or geometric character, a typographic bullet, or a joiner of emoji;
- Markdown markup outside of fenced code: the ``#`` of a heading (two to six; a single one is a comment in too many
  languages), ``*`` around bold or italic words, backticks around inline code, the marker of a list item or quotation,
  the ``|`` and the rule of a table, a horizontal rule; or a fence itself.

A token is *decorative* if it has a visible character and all its visible characters are decoration: ``**`` in
``**Note**`` is, ``**`` in ``x ** 2`` is not. Any part of an emoji's bytes counts as the emoji.
"""

import re
from functools import lru_cache

import numpy as np

from teacher_cache.records import TokenSample

PICTURES = re.compile(
    "[\u2022\u2023\u2043\u200d\u231a\u231b\u23e9-\u23f3\u23f8-\u23fa\u2500-\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55"
    "\ufe0f\U0001f000-\U0001faff]+"
)
_FENCE = re.compile(r"^[ \t]*(?P<mark>```+|~~~+)[ \t]*(?P<after>[^`\n]*)$", re.MULTILINE)
_MARKS = re.compile(  # the named groups are decoration, the rest of a match is not
    r"^[ \t]*(?P<rule>([-*_=])\2{2,})[ \t]*$"
    r"|^[ \t]*(?P<heading>\#{2,6})(?=[ \t])"
    r"|^[ \t]*(?P<quote>>)(?=[ \t]\S)"
    r"|^[ \t]*(?P<item>[-*+])(?=[ \t]+\S)",
    re.MULTILINE | re.VERBOSE,
)
_PAIRS = re.compile(  # marks around words on one line, neither inside a word nor next to inner white space
    r"(?<![\w*])(?P<open>\*{1,3})(?=[^\s*])[^*\n]{1,400}?(?<=[^\s*])(?P<close>\*{1,3})(?![\w*])"
    r"|(?<!`)(?P<tick>`)(?=[^`\n]{1,400}`(?!`))[^`\n]*(?P<tock>`)"
)
_TABLE = re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE)
_TABLE_RULE = re.compile(r"[ \t|:-]+")


def decorative_tokens(sample: TokenSample) -> np.ndarray:
    """Which tokens of a sequence are decorative, bool [S]."""
    marked_C, visible_C = decoration(sample.text), _visible(sample.text)
    sizes_C = _byte_lengths(sample.text)
    marked_B, visible_B = np.repeat(marked_C & visible_C, sizes_C), np.repeat(visible_C, sizes_C)
    n_marked_S = _inside(marked_B, sample)
    return (n_marked_S > 0) & (n_marked_S == _inside(visible_B, sample))


def decoration(text: str) -> np.ndarray:
    """Which characters of a text are decoration, bool [C]."""
    marked_C = np.zeros(len(text), bool)
    for match in PICTURES.finditer(text):
        marked_C[match.start() : match.end()] = True
    for start, stop in _outside_of_fences(text, marked_C):
        prose = text[start:stop]
        for pattern in (_MARKS, _PAIRS):
            for match in pattern.finditer(prose):
                for name, group in match.groupdict().items():
                    if group is not None:
                        marked_C[start + match.start(name) : start + match.end(name)] = True
        for match in _TABLE.finditer(prose):
            row_C = np.array([character == "|" for character in match.group()])
            if _TABLE_RULE.fullmatch(match.group()):
                row_C[:] = True
            marked_C[start + match.start() : start + match.end()] |= row_C
    return marked_C


def _outside_of_fences(text: str, marked_C: np.ndarray) -> list[tuple[int, int]]:
    """Spans outside of fenced code; fences themselves are set in ``marked_C``. An unclosed fence runs to the end."""
    spans, start, opening = [], 0, ""
    for match in _FENCE.finditer(text):
        mark, after = match.group("mark", "after")
        closes = mark.startswith(opening) and after[:1] in ("", "<")  # "<": a chat template's end of turn
        if opening and not closes:
            continue
        marked_C[match.start("mark") : match.end("mark")] = True
        if opening:
            opening, start = "", match.end()
        else:
            spans.append((start, match.start()))
            opening = mark
    return spans if opening else [*spans, (start, len(text))]


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


@lru_cache(maxsize=1)
def _blanks() -> np.ndarray:
    return np.array([code for code in range(0x3001) if chr(code).isspace() or code < 0x20], np.uint32)


def _visible(text: str) -> np.ndarray:
    return ~np.isin(_codes(text), _blanks())


def _byte_lengths(text: str) -> np.ndarray:
    """Bytes of each character in UTF-8."""
    codes = _codes(text)
    return 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)


def _inside(flags_B: np.ndarray, sample: TokenSample) -> np.ndarray:
    """Number of flagged bytes in each token, int64 [S]."""
    before = np.concatenate([[0], np.cumsum(flags_B)])
    return before[sample.byte_end] - before[sample.byte_start]


class DecorativeIds:
    """Classifier of token ids: decorative if most of their occurrences in the added texts are."""

    def __init__(self, vocab_size: int) -> None:
        self._seen_V = np.zeros(vocab_size, np.int64)
        self._decorative_V = np.zeros(vocab_size, np.int64)

    def add(self, sample: TokenSample) -> None:
        """Count the tokens of a sequence."""
        np.add.at(self._seen_V, sample.input_ids, 1)
        np.add.at(self._decorative_V, sample.input_ids[decorative_tokens(sample)], 1)

    def flags(self) -> np.ndarray:
        """Which ids are decorative, bool [V]; False for ids that never occurred."""
        return 2 * self._decorative_V > self._seen_V
