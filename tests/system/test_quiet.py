"""What commands print is ours: results on standard output, on standard error log lines of our own, each of one line.

Libraries say a lot while they are loaded, and while they load and save models: a fresh process hears all of it.
"""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from support.commands import MODULES, environment
from support.workspace import Workspace
from teacher_cache.logs import QUIET

OUR_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ (teacher_cache|trainer|tools)\.[\w.]+: \S.*")
END = "-- end of a command"
SEVERAL = f"""
import json, sys
from importlib import import_module
for module, *arguments in json.loads(sys.argv[1]):
    try:
        import_module(module).main(arguments)
    except SystemExit as ended:
        assert not ended.code, (arguments, ended.code)
    print({END!r}, flush=True)
"""


def said(*lines: tuple[object, ...]) -> list[Any]:
    """What commands say with --json, one after the other in a process of their own, if that is all there is."""
    commands = [[MODULES[str(command)], *map(str, arguments), "--json"] for command, *arguments in lines]
    clean = {name: value for name, value in environment().items() if name not in QUIET}
    clean["PYTHONPATH"] = ":".join(sys.path)
    process = [sys.executable, "-c", SEVERAL, json.dumps(commands)]
    done = subprocess.run(process, env=clean, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not OUR_LINE.fullmatch(line)] == []
    *outputs, rest = done.stdout.split(f"{END}\n")
    assert rest == ""
    return [json.loads(output) for output in outputs]


def test_caching_training_and_checking_print_no_library_messages(workspace: Workspace) -> None:
    cache, output = workspace.folder / "cache", workspace.folder / "student"
    config = workspace.train_config(cache, output, data={"cache": str(cache), "num_workers": 1})
    made, trained, measured, verified = said(
        ("teacher-cache", "run", workspace.cache_config(cache, capture={})),
        ("train-student", "run", config, "--set", "loop.max_steps=2"),
        ("train-student", "evaluate", output / "final", cache, "--limit", 4),
        ("cache-tools", "verify", cache, "--teacher", workspace.teacher),
    )
    assert (made["complete"], trained["steps"], trained["target"], measured["samples"]) == (True, 2, "draws", 4)
    assert verified["rescored"]["problems"] == []


def test_caching_with_vllm_prints_no_library_messages(workspace: Workspace) -> None:
    pytest.importorskip("vllm")
    engine = {"kind": "vllm", "max_batch_tokens": 256}
    (made,) = said(("teacher-cache", "run", workspace.cache_config(workspace.folder / "cache", engine=engine)))
    assert made["complete"]
