"""Smoothed BLEU-4 of one sentence, as CodeXGLUE's evaluator of code-to-text computes it (ACL C04-1072).

It differs from other BLEUs: one is added to numerator and denominator of 2-, 3- and 4-grams, but not of words, and one
to both lengths of the brevity penalty.
"""

import math
import re
import sys
from collections import Counter

_WORD = re.compile(r"[^\W_]+|_|[^\s\w]")
_TINY = sys.float_info.min  # keeps logarithms of 0 finite


def smoothed_bleu(written: str, wanted: str) -> float:
    """The score of a text, from 0 to 100; words are letters and digits in any case, and each other character."""
    words, reference = _WORD.findall(written.lower()), _WORD.findall(wanted.lower())
    logarithms = [_log_precision(words, reference, n) for n in (1, 2, 3, 4)]
    penalty = min(0.0, 1 - (len(reference) + 1) / (len(words) + 1))
    return 100 * math.exp(math.fsum(logarithms) / 4 + penalty)


def _log_precision(words: list[str], reference: list[str], n: int) -> float:
    found, known = _ngrams(words, n), _ngrams(reference, n)
    added = _TINY if n == 1 else 1
    return math.log((found & known).total() + added) - math.log(found.total() + added)


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))
