"""The process that parses: hostile replies cost one reply each, and nothing runs in it."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from schemas.errors import MachineError
from support.code_cases import CASES, DEF
from teacher_cache.curation import code_rule
from teacher_cache.curation.code_parser import MAX_CHARACTERS, judge_all
from teacher_cache.curation.code_rule import Verdict

GOOD = f"```python\n{DEF}```"
HOSTILE = {
    "brackets": "(" * 100_000,
    "signs": "x = " + "-" * 400_000 + "1",
    "attributes": "x = a" + ".b" * 50_000,
    "calls": "x = a" + "()" * 50_000,
    "negations": "x = " + "not " * 200_000 + "1",
    "powers": "x = " + "2 ** " * 150_000 + "1",
    "lambdas": "x = " + "lambda: " * 100_000 + "1",
    "f-strings": "x = " + "f'{" * 1000,
    "indents": "".join(" " * i + "if 1:\n" for i in range(1000)) + " " * 1000 + "pass",
    "branches": "if 1: pass\n" + "elif 1: pass\n" * 20_000,
    "digits": "x = " + "9" * 900_000,
    "null": "x = 1\0",
    "surrogate": "x = '\ud800'",
    "prompts": ">>> " * 100_000,
}


def test_hostile_replies_cost_one_reply_each() -> None:
    replies = [each for code in HOSTILE.values() for each in (f"```python\n{code}\n```", GOOD)]
    verdicts = judge_all(replies)
    assert verdicts[1::2] == [Verdict("")] * len(HOSTILE)
    reasons = dict(zip(HOSTILE, (verdict.reason for verdict in verdicts[::2]), strict=True))
    assert {*reasons.values()} <= {"syntax", "limits"}, reasons


def test_the_process_judges_as_the_rule_does() -> None:
    assert judge_all([reply for reply, _ in CASES]) == [code_rule.judge(reply) for reply, _ in CASES]


def test_a_long_reply_is_not_parsed() -> None:
    assert judge_all(["x" * 100_000_000, GOOD]) == [Verdict("limits"), Verdict("")]
    assert judge_all(["#" * MAX_CHARACTERS]) == [Verdict("no_code")]


def test_a_reply_that_ends_the_process_is_told_from_those_around_it(tmp_path: Path) -> None:
    """A process that crashes, or that uses up its time, where it meets a word."""
    script = tmp_path / "crashing.py"
    script.write_text(
        "import json, os, resource, signal, sys, time\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    reply = json.loads(line)\n"
        "    if reply == 'crash': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if reply == 'spin':\n"
        "        resource.setrlimit(resource.RLIMIT_CPU, (1, -1))\n"
        "        while True: pass\n"
        "    print(json.dumps(['', '']), flush=True)\n"
    )
    with mock.patch.object(code_rule, "__file__", str(script)):
        verdicts = judge_all(["a", "crash", "b", "crash", "spin", "c"])
    assert [verdict.reason for verdict in verdicts] == ["", "limits", "", "limits", "limits", ""]


@pytest.mark.parametrize("ending", ["raise SystemExit('no such library')", "import os; os.kill(os.getpid(), 9)"])
def test_no_reply_is_blamed_for_what_ends_the_process_from_outside(tmp_path: Path, ending: str) -> None:
    """A library that is missing; a process that the system ends because memory is short."""
    script = tmp_path / "ending.py"
    script.write_text(f"print('ready', flush=True)\n{ending}\n")
    with (
        mock.patch.object(code_rule, "__file__", str(script)),
        pytest.raises(MachineError, match=r"ended after 0 of 1: (no such library|exit status -9)"),
    ):
        judge_all(["a"])


def test_the_process_has_limits_and_writes_no_file(tmp_path: Path) -> None:
    """The limits that the system shows for a process that waits for its next reply."""
    process = subprocess.Popen(
        [sys.executable, "-I", code_rule.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write('"x"\n')
    process.stdin.flush()
    process.stdout.readline()
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    process.stdin.close()
    assert process.wait() == 0
    process.stdout.close()
    soft = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()}
    assert soft["Max address space"] == str(code_rule.MEMORY_BYTES)
    assert soft["Max file size"] == soft["Max core file size"] == "0"
    assert 0 < int(soft["Max cpu time"]) <= code_rule.CPU_SECONDS + 5
    assert list(tmp_path.iterdir()) == []
