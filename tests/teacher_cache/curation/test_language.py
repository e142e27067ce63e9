"""Languages of replies: what is prose decides, and code, formulas and addresses do not."""

import time

import pytest

from benchmarks.support.corpus import human_eval_chats
from benchmarks.support.two_kinds import texts
from schemas.errors import UserError
from support.records_to_judge import chat_record, judged, opened, text_record
from teacher_cache.curation.language import MAX_CHARACTERS, prose

SAID = {
    "en": "The function returns the sum of all even numbers in the given list, and zero if there are none.",
    "de": "Die Funktion gibt die Summe aller geraden Zahlen der Liste zurück, und null, wenn es keine gibt.",
    "fr": "La fonction renvoie la somme des nombres pairs de la liste donnée, et zéro s'il n'y en a aucun.",
    "zh": "这个函数返回给定列表中所有偶数的和，如果列表里一个偶数也没有，那么它就返回零，不会报告任何错误。",
    "ru": "Функция возвращает сумму всех чётных чисел заданного списка, или ноль, если таких чисел нет.",
}
ENGLISH_CODE = (
    "```python\n# The words in this comment are English ones, and there are many more of them than outside.\n```"
)


@pytest.mark.parametrize("language", SAID)
def test_the_languages_to_keep_stay(language: str) -> None:
    step = opened({"step": "language", "keep": [language]})
    reasons = judged(step, *(chat_record(SAID["en"], said) for said in SAID.values()))
    assert reasons == ["" if other == language else f"language: {other}" for other in SAID]


def test_several_languages_may_stay() -> None:
    step = opened({"step": "language", "keep": ["de", "fr"]})
    assert [bool(reason) for reason in judged(step, *map(text_record, SAID.values()))] == [
        True,
        False,
        False,
        True,
        True,
    ]


def test_what_is_fenced_does_not_decide() -> None:
    step = opened({"step": "language", "keep": ["de"]})
    assert judged(
        step, text_record(f"{SAID['de']}\n\n{ENGLISH_CODE}"), text_record(f"{SAID['en']}\n{ENGLISH_CODE}")
    ) == [
        "",
        "language: en",
    ]


def test_a_reply_that_drifts_into_another_language_leaves() -> None:
    step = opened({"step": "language", "keep": ["en"], "min_probability": 0.5})
    long = "\n".join([SAID["en"]] * 200 + [SAID["zh"]] * 400)
    line = long.replace("\n", " ")
    assert judged(step, text_record("\n".join([SAID["en"]] * 600)), text_record(long), text_record(line)) == [
        "",
        "language: zh",
        "language: zh",
    ]


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH_CODE,
        "for i in range(10):\n    total += values[i]\nreturn total",
        "function add(a, b) {\n  const total = a + b;\n  return total;\n}\nmodule.exports = add;",
        "SELECT name, age FROM users WHERE age > 30 ORDER BY name;",
        r"$\int_0^1 f(x)\,dx = F(1) - F(0)$ \[ e^{i\pi} + 1 = 0 \]",
        "https://example.org/a/long/address/with/many/english/words/in/it",
        "42",
        "Paris.",
        "",
    ],
)
def test_too_little_prose_to_tell_stays(text: str) -> None:
    assert judged(opened({"step": "language", "keep": ["ru"]}), text_record(text)) == [""]


def test_real_texts() -> None:
    """Python's manual and its modules, whose comments are English, and solutions of HumanEval."""
    english, other = opened({"step": "language", "keep": ["en"]}), opened({"step": "language", "keep": ["zh"]})
    manual = [text_record(text) for text in [*texts()["English"].values()][::2]]
    assert judged(english, *manual) == [""] * len(manual)
    assert judged(other, *manual) == ["language: en"] * len(manual)
    modules = [text_record(text) for text in [*texts()["Python"].values()][::4]]
    assert sum(map(bool, judged(english, *modules))) <= len(modules) / 40
    solutions = [text_record(chat["messages"][1]["content"]) for chat in human_eval_chats()]
    assert judged(other, *solutions) == [""] * 164


def test_an_unknown_language_is_refused() -> None:
    step = opened({"step": "language", "keep": ["xx"]})
    with pytest.raises(UserError, match=r"steps\.0\.keep: xx is not a language that can be told; known are .*\ben\b"):
        step.fingerprint()


@pytest.mark.parametrize("piece", [" ", "x", "$", "\\[", "<", "a.", "a ", "@", "a=", "`", "a(", "a  ", ":/", "> "])
def test_hostile_lines_take_little_time(piece: str) -> None:
    started = time.process_time()
    assert len(prose(piece * 1_000_000)) <= MAX_CHARACTERS + 40
    assert time.process_time() - started < 5
