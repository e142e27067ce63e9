"""Texts as sets of hashed word 5-grams.

A word is a run of letters and digits, in any case. Scripts without spaces between words (Chinese, Japanese, Thai, Lao,
Khmer, Burmese, Tibetan) count each character as a word. Texts of fewer than five words are one n-gram: all their words.
"""

import re
from collections.abc import Sequence

import numpy as np
import xxhash

N = 5
UNSPACED = (  # characters that are a word each
    "\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u1950-\u1aaf\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua980-\ua9ff\uaa00-\uaadf\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def words_of(text: str) -> list[str]:
    """The words of a text, folded to one case; if it has none, all of it without white space as one word."""
    folded = text.casefold()
    return (_ASCII_WORD if folded.isascii() else _WORD).findall(folded) or ["".join(folded.split())]


def hashed_shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of all n-grams, where each text's begin, and a hash of each text's words.

    Returns uint64 [H], int64 [M + 1] and uint64 [M] of M texts. Repeated n-grams are repeated.
    """
    words = [words_of(text) for text in texts]
    counts_M = np.fromiter(map(len, words), np.int64, len(words))
    lines = ["\n".join(each).encode(errors="surrogatepass") for each in words]
    hash_M = np.fromiter(map(xxhash.xxh3_64_intdigest, lines), np.uint64, len(lines))
    split = [word for line in lines for word in line.split(b"\n")]
    hash_W = np.fromiter(map(xxhash.xxh3_64_intdigest, split), np.uint64, len(split))
    grams_M = np.maximum(counts_M - N + 1, 1)
    offsets = np.concatenate([[0], np.cumsum(grams_M)])
    first_M = np.cumsum(counts_M) - counts_M
    start_H = np.repeat(first_M - offsets[:-1], grams_M) + np.arange(offsets[-1])
    hashes_H = np.zeros(len(start_H), np.uint64)
    for place in range(N):
        hashes_H = _mixed(hashes_H * _MIX[0] + hash_W[np.minimum(start_H + place, len(hash_W) - 1)])
    short_M = counts_M < N
    hashes_H[offsets[:-1][short_M]] = hash_M[short_M]
    return hashes_H, offsets, hash_M


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[1]
    values = (values ^ (values >> np.uint64(27))) * _MIX[2]
    return values ^ (values >> np.uint64(31))
