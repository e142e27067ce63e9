"""Words of texts, case and punctuation folded, and 64-bit hashes of n-grams of them.

Only words of a vocabulary have a hash, their xxh3; all others are 0. The hash of an n-gram is the polynomial
Σ hash[k] · BASE^k modulo 2^64: n vector operations for all n-grams of all texts.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain, repeat

import numpy as np
import xxhash

from teacher_cache.curation.shingles import UNSPACED

BASE = 0x9E3779B97F4A7C15  # odd, so that no place of an n-gram is lost
_words = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+").findall
_ascii_words = re.compile("[a-z0-9]+").findall


def words(text: str) -> list[str]:
    """The letters and digits between anything else; in scripts without spaces, each character is a word."""
    if text.isascii():
        return _ascii_words(text.lower())
    return _words(unicodedata.normalize("NFKC", text).casefold())


def vocabulary(texts: Iterable[Iterable[str]]) -> dict[str, int]:
    """The hash of each word of these texts."""
    return {word: xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in set().union(*texts)}


def word_hashes(texts: Sequence[list[str]], known: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the words of all texts, one after the other, each text followed by a 0; and the text of each.

    Returns uint64 [W] and int64 [W].
    """
    length_T = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    each = chain.from_iterable(chain(text, ("",)) for text in texts)
    hash_W = np.fromiter(map(known.get, each, repeat(0)), np.uint64, length_T.sum())
    return hash_W, np.repeat(np.arange(len(texts)), length_T)


def ngram_hashes(hash_W: np.ndarray, n: int) -> np.ndarray:
    """Hashes of the n-grams that begin at each word, uint64 [W - n + 1]; none if there are fewer words."""
    count = max(len(hash_W) - n + 1, 0)
    total = hash_W[:count].copy()
    for k in range(1, n):
        total += hash_W[k : count + k] * np.uint64(pow(BASE, k, 1 << 64))
    return total
