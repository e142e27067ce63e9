"""Whether a reply holds Python that parses, with a function, class or loop; nothing of it is ever executed.

Texts come from anyone, and parsing one can exhaust memory or crash the interpreter. So this file also runs as a script,
in a process with limits (``limited_script``); it imports nothing of ours, so that no search path is needed.

The code of a reply is what follows its last ``</think>``: all of it, if that parses and holds a function, class or
loop; otherwise its fenced blocks, as CommonMark defines them. A fence without an end reaches to the end. All blocks
labelled as Python must parse; of blocks without a label, those that parse count.
"""

import ast
import doctest
import json
import re
import resource
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from markdown_it import MarkdownIt

MEMORY_BYTES = 2 << 30  # address space of the process
CPU_SECONDS = 10  # for one reply
STRUCTURES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.AsyncFor, ast.While)
NOT_PARSED = (SyntaxError, ValueError, RecursionError, MemoryError)
_PYTHON = re.compile(r"(?:i?python|py|pycon)[\d.]*|pyi|python-repl").fullmatch
_LABEL = re.compile(r"[\s{.]*([^\s{},:]+)").match  # `python`, `{.python}`, `python:file.py`, `{r, echo}`
_THOUGHT = "</think>"
_MARKDOWN = MarkdownIt("commonmark")
_MARKDOWN.core.ruler.enableOnly(["normalize", "block"])


class Verdict(NamedTuple):
    """Why a reply leaves, "" if it stays; and the parser's message, or the other languages."""

    reason: str
    detail: str = ""


def judge(reply: str) -> Verdict:
    """The verdict on a reply: ``no_code``, ``syntax``, ``no_structure``, ``other_language``, or that it stays."""
    text = reply.rpartition(_THOUGHT)[2]
    try:
        if _has_structure(text):
            return Verdict("")
    except NOT_PARSED:
        pass
    blocks = list(fenced(text))
    python = [code for label, code in blocks if _PYTHON(label)]
    found, failed = [], ""
    for code in python:
        try:
            found.append(_has_structure(code))
        except NOT_PARSED as error:
            return Verdict("syntax", message(error))
    for code in (code for label, code in blocks if not label):
        try:
            found.append(_has_structure(code))
        except NOT_PARSED as error:
            failed = failed or message(error)
    if found:
        return Verdict("" if any(found) else "no_structure")
    if others := sorted({label for label, _ in blocks if label}):
        return Verdict("other_language", ", ".join(others)[:200])
    return Verdict("syntax", failed) if failed else Verdict("no_code")


def fenced(text: str) -> Iterator[tuple[str, str]]:
    """Yield the label, the first word of its info string in lower case, and the content of each fenced block."""
    for token in _MARKDOWN.parse(text):
        if token.type == "fence":
            label = _LABEL(token.info)
            yield label[1].lower() if label else "", token.content


def _has_structure(code: str) -> bool:
    """Whether code holds a function, class or loop. Raises one of NOT_PARSED."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escape sequences
        tree = ast.parse(_without_prompts(textwrap.dedent(code)))
    return any(isinstance(node, STRUCTURES) for node in ast.walk(tree))


def _without_prompts(code: str) -> str:
    """What is typed in an interactive session; code without prompts as it is. Raises ValueError."""
    if not code.lstrip().startswith(">>>"):
        return code
    return "".join(example.source for example in doctest.DocTestParser().get_examples(code))


def message(error: BaseException) -> str:
    """What a parser says, without the place."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return (text or type(error).__name__)[:200]


def main() -> None:
    """Judge replies: one JSON string a line in, one JSON pair a line out, after a first line once it is ready."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        until = int(time.process_time()) + 1 + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))  # beyond it, SIGXCPU ends the process
        try:
            verdict = judge(json.loads(line))
        except Exception as error:  # memory, nesting, or a fault in a parser: of this reply alone
            verdict = Verdict("limits", type(error).__name__)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
