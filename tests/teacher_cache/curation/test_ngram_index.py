"""The index of n-grams against a plain search, and what it leaves out."""

from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.curation import ngram_index
from teacher_cache.curation.ngram_index import MOST_ITEMS, ItemField, NgramIndex
from teacher_cache.curation.word_hashes import ngram_hashes, vocabulary, word_hashes, words

SENTENCE = "quick brown foxes jump over lazy dogs near the old mill"


def index_of(*texts: str, ngram: int = 6, min_share: float = 0) -> NgramIndex:
    return NgramIndex([ItemField("set", str(n), text, ngram) for n, text in enumerate(texts)], min_share)


def items(index: NgramIndex, *texts: str) -> list[str | None]:
    return [None if found is None else found.item for found in index.find(texts)]


def test_words_are_folded() -> None:
    assert words("Don't  STOP_now: x=1.5!") == ["don", "t", "stop", "now", "x", "1", "5"]
    assert words("ＦＵＬＬ Straße\u3000ÉCOLE") == ["full", "strasse", "école"]
    assert words("日本のGDP、增长 5%") == ["日", "本", "の", "gdp", "增", "长", "5"]


letters = st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), max_size=30)


@given(st.lists(letters, min_size=1, max_size=4), st.lists(letters, min_size=1, max_size=6), st.integers(5, 8))
def test_an_item_is_found_where_a_plain_search_finds_it(
    item_words: list[list[str]], text_words: list[list[str]], n: int
) -> None:
    """With all n-grams but those of templates, of which so few items have none; more than MOST_ITEMS are needed."""
    index = index_of(*map(" ".join, item_words), ngram=n)

    def grams(of: list[str], size: int) -> set[tuple[str, ...]]:
        return {tuple(of[at : at + size]) for at in range(len(of) - size + 1)}

    for found, text in zip(items(index, *map(" ".join, text_words)), text_words, strict=True):
        sizes = [min(n, len(item)) for item in item_words]
        there = {
            str(number)
            for number, (item, size) in enumerate(zip(item_words, sizes, strict=True))
            if size >= 5 and grams(item, size) & grams(text, size)
        }
        assert (found in there) if there else found is None


def test_the_whole_of_a_shorter_item_is_looked_for_and_none_of_a_very_short_one() -> None:
    index = index_of("seven silver swans sang softly", "who sang softly then", ngram=13)
    assert index.searched.tolist() == [True, False]
    assert items(index, "SEVEN silver swans; sang softly!", "seven silver swans sang", "who sang softly then") == [
        "0",
        None,
        None,
    ]


def test_the_share_of_an_item_that_makes_it_found() -> None:
    """11 words have 6 n-grams of 6; a text with 8 of them has 3."""
    text = " ".join(SENTENCE.split()[:8])
    assert items(index_of(SENTENCE, min_share=0.5), text) == ["0"]
    assert items(index_of(SENTENCE, min_share=0.51), text) == [None]
    assert items(index_of(SENTENCE, min_share=1), SENTENCE) == ["0"]
    assert items(index_of(SENTENCE, min_share=0), " ".join(SENTENCE.split()[:6])) == ["0"]


def test_of_several_items_the_one_of_which_most_is_there_is_named() -> None:
    both = index_of(SENTENCE + " where seven silver swans sang so softly", SENTENCE)
    assert items(both, SENTENCE) == ["1"]


def test_templates_of_a_set_are_no_evidence() -> None:
    template = "complete the following function so that it works as described"
    endings = [f"ending number{n} has own words at its end{n} too" for n in range(MOST_ITEMS + 1)]
    index = index_of(*(f"{template} {ending}" for ending in endings))
    assert items(index, f"{template} and mine differs", endings[3]) == [None, "3"]
    few = index_of(*(f"{template} {ending}" for ending in endings[1:]))
    assert items(few, template) == ["0"]


def test_texts_beside_each_other_are_kept_apart() -> None:
    index = index_of(SENTENCE)
    half = SENTENCE.split()
    assert items(index, " ".join(half[:5]), " ".join(half[5:10]), "", SENTENCE) == [None, None, None, "0"]


def test_long_texts_are_searched_in_batches() -> None:
    index = index_of(SENTENCE)
    texts = [f"{'x ' * (n % 7)}{SENTENCE if n % 3 else 'nothing'}" for n in range(40)] + ["y " * 200 + SENTENCE]
    whole = items(index, *texts)
    assert whole == [None if n % 3 == 0 else "0" for n in range(40)] + ["0"]
    with (
        mock.patch.object(ngram_index, "BATCH_CHARACTERS", 150),
        mock.patch.object(ngram_index, "words", side_effect=words) as split,
    ):
        assert items(index, *texts) == whole
    assert [call.args[0] for call in split.call_args_list] == texts


def test_an_index_of_nothing_finds_nothing() -> None:
    assert items(index_of("x"), SENTENCE, "") == [None, None]
    assert index_of(SENTENCE).find([]) == []


def test_hashes_depend_on_the_order_of_words() -> None:
    texts = ["aa bb cc", "cc bb aa", "aa cc bb"]
    known = vocabulary(map(words, texts))
    hash_W, text_W = word_hashes(list(map(words, texts)), known)
    assert text_W.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert hash_W[3::4].tolist() == [0, 0, 0]
    whole = ngram_hashes(hash_W, 3)[::4]
    assert len(np.unique(whole)) == 3
    assert len(ngram_hashes(hash_W, 13)) == 0
