"""What a text concludes, whether answers bear it out, and whether they quote a draft; by its words and numbers alone.

None of this says that a conclusion is right: a model that errs in the same way twice is consistent.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from teacher_cache.curation.arithmetic import MAX_DIGITS, statements
from teacher_cache.generated.verification_chain import Chain

QUOTED_WORDS = 8  # in a row
MAX_WORDS = 64  # of a conclusion; a longer one is said by no answer
SHORT = 8  # words of a text that is a conclusion as a whole
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_MARKED = re.compile(r"^####[ \t]*(.+)$", re.MULTILINE)
_NAMED = re.compile(
    r"\b(?:answer|result|total|solution)\b[ \t]*(?:is|=|:|are)[ \t:]*(.+?)(?=[.;!?](?:\s|$)|$)", re.I | re.M
)
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|(?<![\w.])-?\.\d+")
_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset(("a", "an", "the"))
_YES, _NO = re.compile(r"\s*(?:yes|correct|true)\b", re.I), re.compile(r"\s*(?:no|incorrect|false|wrong)\b", re.I)
_MENTIONS = re.compile(r"\bdraft\b|\b(?:above|previous|earlier|first|original) (?:answer|reply|response)\b", re.I)


def conclusion(text: str) -> str:
    """What is boxed, or marked ``####``, or called the answer; or else the last number; or a short text as it is."""
    for pattern in (_BOXED, _MARKED, _NAMED):
        if found := pattern.findall(text):
            return str(found[-1]).strip()
    if numbers := _NUMBER.findall(text):
        return str(numbers[-1])
    return text.strip() if 0 < len(_WORD.findall(text)) <= SHORT else ""


def consistent(chain: Chain) -> bool:
    """Whether an answer says what the final reply concludes, and none denies it or has another result for its sums.

    An answer that begins with "yes" says what its question does, one with "no" denies it.
    """
    concluded = conclusion(chain.final)
    if not _WORD.findall(concluded):
        return False
    borne_out = False
    for question, answer in zip(chain.questions, chain.answers, strict=True):
        if _NO.match(answer) and says(question, concluded) and not says(answer, concluded):
            return False
        borne_out |= says(f"{question}\n{answer}" if _YES.match(answer) else answer, concluded)
    return borne_out and not _contradicts(chain.final, chain.answers)


def says(text: str, phrase: str) -> bool:
    """Whether a text has the number of ``phrase``, if that is or holds exactly one, otherwise its words in a row."""
    numbers = _NUMBER.findall(phrase)
    if len(numbers) == 1:
        wanted = _value(numbers[0])
        return wanted is not None and any(_value(number) == wanted for number in _NUMBER.findall(text))
    said, words = _words(text), _words(phrase)
    if not 0 < len(words) <= MAX_WORDS:
        return False
    return any(said[at : at + len(words)] == words for at in range(len(said) - len(words) + 1))


def quotes(chain: Chain, known: str) -> bool:
    """Whether an answer mentions the draft, or has eight words of it in a row that are in no question.

    known: the prompt, whose words do not count either.
    """
    given = {gram for text in (known, *chain.questions) for gram in _grams(text)}
    drafted = {*_grams(chain.draft)} - given
    return any(_MENTIONS.search(answer) or not drafted.isdisjoint(_grams(answer)) for answer in chain.answers)


def _contradicts(final: str, answers: Iterable[str]) -> bool:
    """Whether a statement of ``final`` has the left side of one of an answer, and another right side."""
    found = {_squeezed(one.left): one.right for answer in answers for one in statements(answer)}
    return any(
        _squeezed(found.get(_squeezed(one.left), one.right)) != _squeezed(one.right) for one in statements(final)
    )


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _value(number: str) -> Fraction | None:
    """None if it is no number (1/0), or longer than anybody writes one."""
    above, slash, below = number.replace(",", "").partition("/")
    if len(number) > MAX_DIGITS or (slash and not int(below)):
        return None
    return Fraction(above) / int(below) if slash else Fraction(above)


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES]


def _grams(text: str) -> set[tuple[str, ...]]:
    words: Sequence[str] = _WORD.findall(text.casefold())
    return {tuple(words[at : at + QUOTED_WORDS]) for at in range(len(words) - QUOTED_WORDS + 1)}
