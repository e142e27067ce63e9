"""Which texts contain items of evaluation sets: a sorted array of the hashes of their n-grams.

A field of an item is found in a text that holds enough of its n-grams; a field with fewer words is one n-gram, all of
it. Not looked for, since ordinary texts have them too:

- n-grams with fewer than four words of two letters or more, and less than half of such (``x y for x y in``, numbers);
- n-grams of more than ``MOST_ITEMS`` items of a set: its template;
- fields with fewer than ``LEAST_WORDS`` words (``42``, ``return x + y``).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from teacher_cache.curation.word_hashes import ngram_hashes, vocabulary, word_hashes, words

LEAST_WORDS = 5
LEAST_STRONG = 4  # words of two letters or more
MOST_ITEMS = 16
BATCH_CHARACTERS = 1 << 22
_FILTER_BITS = 4  # of the table that is looked at first, per n-gram: one in 16 of other n-grams passes it


class ItemField(NamedTuple):
    """One field of an item of an evaluation set."""

    set_name: str
    item: str
    text: str
    ngram: int  # words in a row that are looked for


class NgramIndex:
    """Finds fields of items in texts."""

    def __init__(self, fields: Sequence[ItemField], min_share: float) -> None:
        """``min_share``: of a field's n-grams, how many make it found; one at least."""
        self._fields = fields
        words_F = [words(field.text) for field in fields]
        self._known = vocabulary(words_F)
        strong = {word for word in self._known if word.isalpha() and (len(word) > 1 or not word.isascii())}
        length_F = [min(field.ngram, len(found)) for field, found in zip(fields, words_F, strict=True)]
        lengths = sorted({length for length in length_F if length >= LEAST_WORDS})
        pairs = [_ngrams_of(words_F, length_F, n, self._known, strong) for n in lengths]
        gram_P = np.concatenate([np.empty(0, np.uint64), *(gram for gram, _ in pairs)])
        field_P = np.concatenate([np.empty(0, np.int64), *(field for _, field in pairs)])
        kept_P = ~_of_template(gram_P, field_P, fields)
        gram_P, field_P = gram_P[kept_P], field_P[kept_P]
        order = np.lexsort((field_P, gram_P))
        self._gram_G, self._first_G, self._count_G = np.unique(gram_P[order], return_index=True, return_counts=True)
        self._field_P = field_P[order]
        self._lengths = lengths
        self._total_F = np.bincount(field_P, minlength=len(fields))
        self._min_share = min_share
        self._shift = np.uint64(64 - min(max(len(self._gram_G), 1).bit_length() + _FILTER_BITS, 30))
        self._may_be = np.zeros(1 << (64 - int(self._shift)), bool)
        self._may_be[self._gram_G >> self._shift] = True

    def __len__(self) -> int:
        """Different n-grams."""
        return len(self._gram_G)

    @property
    def searched(self) -> np.ndarray:
        """Which fields can be found at all, bool [F]."""
        return self._total_F > 0

    def find(self, texts: Sequence[str]) -> list[ItemField | None]:
        """For each text the field of which most was found in it."""
        ends = np.cumsum([len(text) for text in texts])
        found: list[ItemField | None] = []
        while len(found) < len(texts):  # words take ten times the memory of their text
            read = int(ends[len(found) - 1]) if found else 0
            last = int(np.searchsorted(ends, read + BATCH_CHARACTERS, side="right"))
            found += self._found(texts[len(found) : max(last, len(found) + 1)])
        return found

    def _found(self, texts: Sequence[str]) -> list[ItemField | None]:
        hash_W, text_W = word_hashes([words(text) for text in texts], self._known)
        found = [self._find(ngram_hashes(hash_W, n), text_W) for n in self._lengths]
        pair_N = np.unique(np.concatenate([np.empty(0, np.int64), *found]))  # each n-gram once a text
        text_N, gram_N = np.divmod(pair_N, max(len(self._gram_G), 1))
        count_N = self._count_G[gram_N]
        skipped_N = np.cumsum(count_N) - count_N
        place_H = np.arange(count_N.sum()) + np.repeat(self._first_G[gram_N] - skipped_N, count_N)
        hit_H = np.repeat(text_N, count_N) * len(self._total_F) + self._field_P[place_H]
        hit_N, times_N = np.unique(hit_H, return_counts=True)
        text_N, field_N = np.divmod(hit_N, max(len(self._total_F), 1))
        share_N = times_N / self._total_F[field_N]
        best: list[ItemField | None] = [None] * len(texts)
        for hit in np.lexsort((-field_N, share_N)).tolist():  # the last of a text is its best
            if share_N[hit] >= self._min_share:
                best[text_N[hit]] = self._fields[field_N[hit]]
        return best

    def _find(self, gram_W: np.ndarray, text_W: np.ndarray) -> np.ndarray:
        """The n-grams that are in the index, as text · G + place in the index, int64."""
        (at,) = np.nonzero(self._may_be[gram_W >> self._shift])
        place = np.searchsorted(self._gram_G, gram_W[at])
        place[place == len(self._gram_G)] = 0
        same = self._gram_G[place] == gram_W[at] if len(at) else np.empty(0, bool)
        return text_W[at[same]] * len(self._gram_G) + place[same]


def _ngrams_of(
    words_F: Sequence[list[str]], length_F: Sequence[int], n: int, known: dict[str, int], strong: set[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct n-grams that are looked for, uint64 [P], of the fields whose n this is, int64 [P]."""
    field_T = np.array([field for field, length in enumerate(length_F) if length == n])
    texts = [words_F[field] for field in field_T]
    hash_W, text_W = word_hashes(texts, known)
    strong_W = np.fromiter((word in strong for text in texts for word in (*text, "")), np.int64, len(hash_W))
    strong_before = np.concatenate([[0], np.cumsum(strong_W)])
    first_W, last_W = text_W[: 1 - n], text_W[n - 1 :]
    kept_W = (first_W == last_W) & (hash_W[n - 1 :] != 0)  # in one text, without the 0 at its end
    kept_W &= strong_before[n:] - strong_before[:-n] >= min(LEAST_STRONG, n / 2)
    gram_P, field_P = ngram_hashes(hash_W, n)[kept_W], field_T[first_W[kept_W]]
    order = np.lexsort((gram_P, field_P))
    gram_P, field_P = gram_P[order], field_P[order]
    new_P = np.ones(len(order), bool)
    new_P[1:] = (gram_P[1:] != gram_P[:-1]) | (field_P[1:] != field_P[:-1])
    return gram_P[new_P], field_P[new_P]


def _of_template(gram_P: np.ndarray, field_P: np.ndarray, fields: Sequence[ItemField]) -> np.ndarray:
    """Which pairs' n-grams more than ``MOST_ITEMS`` items of the same set have, bool [P]."""
    number: dict[tuple[str, str], int] = {}
    item_F = np.array([number.setdefault((field.set_name, field.item), len(number)) for field in fields], np.int64)
    names = np.array([field.set_name for field in fields])
    found_P = np.zeros(len(gram_P), bool)
    for name in np.unique(names):
        (of_set,) = np.nonzero(names[field_P] == name)
        _, gram_S = np.unique(gram_P[of_set], return_inverse=True)
        pairs = np.unique(gram_S * len(number) + item_F[field_P[of_set]])  # each item once
        found_P[of_set] = np.bincount(pairs // len(number))[gram_S] > MOST_ITEMS
    return found_P
