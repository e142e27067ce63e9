"""Code in replies: a hundred cases by hand; what a fence is; that nothing runs."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from support.code_cases import CASES, DEF
from teacher_cache.curation.code_rule import Verdict, fenced, judge


def test_a_hundred_cases() -> None:
    assert len(CASES) == 100 == len({reply for reply, _ in CASES})
    found = [(reply, judge(reply).reason) for reply, _ in CASES]
    assert [pair for pair, case in zip(found, CASES, strict=True) if pair != case] == []
    assert min(Counter(reason for _, reason in CASES).values()) >= 10


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        ("```python\nprint 'a'\n```", "Missing parentheses in call to 'print'. Did you mean print(...)?"),
        ("```js\n1\n```\n```C++\n1\n```", "c++, js"),
        (f"```python\n{DEF}\n```", ""),
    ],
)
def test_details_name_the_fault_or_the_languages(reply: str, detail: str) -> None:
    assert judge(reply).detail == detail


def test_fences_are_those_of_commonmark() -> None:
    text = "~~~ {.r}\n``` not a fence\n~~~\n\n    ```\n    indented code\n    ```\n\n"
    text += "````\n```\na\n```\n````\n- ```x y\n  b\n"
    assert list(fenced(text)) == [("r", "``` not a fence\n"), ("", "```\na\n```\n"), ("x", "b\n")]


def test_code_is_parsed_and_never_runs(tmp_path: Path) -> None:
    """At import, in decorators, defaults, annotations, metaclasses, f-strings, and by a declared encoding."""
    left = tmp_path / "ran"
    write = f"open({str(left)!r}, 'w').write('x')"
    for code in (
        write + "\nfor i in x: pass",
        f"@{write}\ndef f(): pass",
        f"def f(x={write}): pass",
        f"def f(x: {write}): pass",
        f"class A(metaclass={write}): pass",
        f"class A:\n    {write}",
        f'x = f"""{{{write}}}"""\nfor i in x: pass',
        f"# -*- coding: rot13 -*-\n{write}\ndef f(): pass",
        f"__import__('os').system('touch {left}')\ndef f(): pass",
        f">>> {write}\n1\n>>> def f(): pass\n",
    ):
        for reply in (code, f"```python\n{code}\n```"):
            assert judge(reply) == Verdict(""), "it is valid code"
            assert not left.exists()
    exec(compile(write, "the code", "exec"))
    assert left.exists(), "where it runs, it leaves a file"


def test_the_rule_imports_nothing_of_ours() -> None:
    """It runs as a script that finds no package but installed ones."""
    names = {name.partition(".")[0] for name in vars(sys.modules[judge.__module__])}
    assert not names & {"schemas", "teacher_cache"}
