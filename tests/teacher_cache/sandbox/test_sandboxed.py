"""Code that is run to be tested can do nothing else.

What is tried here must be harmless where it succeeds: the limits under test may be what is broken.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from schemas.errors import MachineError, UserError
from teacher_cache.sandbox import sandboxed
from teacher_cache.sandbox.sandboxed import function_passes, passes


def isolated(code: str, tests: str = "", seconds: int = 10) -> bool:
    return passes(code, tests, True, seconds, "steps.0.executed")


def calling(code: str, tests: str, setup: str = "", seconds: int = 10) -> bool:
    return function_passes(code, "f", tests, setup, True, seconds, "tasks.0")


def namespaces_are_there() -> bool:
    """As another program finds out, so that tests do not skip what is broken."""
    command = ["unshare", "--user", "--map-current-user", "--mount", "--pid", "--net", "--ipc", "--fork", "true"]
    return (
        shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True, check=False).returncode
    )


needs_namespaces = pytest.mark.skipif(not namespaces_are_there(), reason="no user namespaces on this machine")
both = pytest.mark.parametrize("isolate", [pytest.param(True, marks=needs_namespaces), False])


@pytest.fixture
def no_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has none."""
    copy = tmp_path / "copy" / "teacher_cache"
    shutil.copytree(Path(sandboxed.__file__).parent, copy / "sandbox")
    (copy / "__init__.py").touch()
    confinement = copy / "sandbox" / "confinement.py"
    source = confinement.read_text()
    assert source.count("_check(_libc.unshare(_NEW))") == 1
    confinement.write_text(source.replace("_check(_libc.unshare(_NEW))", "raise PermissionError"))
    monkeypatch.setattr(sandboxed, "ROOT", copy.parent)


@pytest.mark.parametrize(
    ("code", "tests", "expected"),
    [
        ("def f(x): return x + 1", "assert f(1) == 2", True),
        ("def f(x): return x", "assert f(1) == 2", False),
        ("def f(: pass", "", False),
        ("import sys; sys.exit(0)", "", False),
        ("import os; os._exit(0)", "", False),
        ("print('true')", "raise ValueError", False),
        ("import os; os.write(1, b'passed'); os._exit(0)", "", False),
        (
            "import os, sys\nfor i in range(64):\n try: os.write(i, b'passed')\n except OSError: pass\nsys.exit()",
            "",
            False,
        ),
        ("import builtins; builtins.exec = lambda *_: None", "assert False", False),
        ("x = 'a' * (2 << 30)", "", False),
        ("import json, math, re, collections, numpy, tempfile; tempfile.TemporaryFile().write(b'x')", "", True),
        ("open('big', 'wb').write(b'x' * (2 << 20))", "", False),
        ("import os; assert 'HOME' not in os.environ", "", True),
    ],
)
@both
def test_what_passes_and_what_does_not(
    code: str, tests: str, expected: bool, isolate: bool, request: pytest.FixtureRequest
) -> None:
    if not isolate:
        request.getfixturevalue("no_namespaces")
    assert passes(code, tests, isolate, 10, "steps.0.executed") is expected


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)"])
@both
def test_what_does_not_end_is_ended(code: str, isolate: bool, request: pytest.FixtureRequest) -> None:
    if not isolate:
        request.getfixturevalue("no_namespaces")
    started = time.monotonic()
    assert not passes(code, "", isolate, 1, "steps.0.executed")
    assert time.monotonic() - started < 20


@needs_namespaces
def test_files_cannot_be_read_written_or_removed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    assert not isolated(f"open({str(secret)!r})")
    assert not isolated(f"import os; os.remove({str(secret)!r})")
    assert not isolated(f"open({str(tmp_path / 'new')!r}, 'w')")
    assert not isolated(f"import os; os.listdir({str(tmp_path)!r})")
    assert not isolated(f"open({os.__file__!r}, 'a')"), "Python's own files are read-only"
    assert not isolated("import os; os.listdir('/proc')")
    assert not isolated("import os; os.listdir('/dev')")
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
    assert isolated("open('here', 'w').write('x')", "import os; assert os.listdir() == ['here']")
    assert isolated("", "import os; assert os.listdir() == []"), "nothing is left for the next"


@needs_namespaces
def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 5):
            assert not isolated(f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)")


@needs_namespaces
@pytest.mark.parametrize(
    "code",
    [
        "assert libc.mount(None, b'/', None, 32 | 4096, None) == 0",  # read-write again
        "assert libc.mount(b'tmpfs', b'.', b'tmpfs', 0, None) == 0",
        "assert libc.unshare(0x10020000) == 0 and libc.mount(None, b'/', None, 32 | 4096, None) == 0",
        "assert libc.chroot(b'.') == 0",
    ],
)
def test_what_was_taken_cannot_be_taken_back(code: str) -> None:
    assert not isolated(f"import ctypes; libc = ctypes.CDLL(None)\n{code}")


@needs_namespaces
def test_other_processes_are_out_of_its_reach() -> None:
    """Asked with signal 0, which does nothing: a test must not do harm where the code under test fails."""
    os.kill(os.getpid(), 0)
    assert not isolated(f"import os; os.kill({os.getpid()}, 0)")
    assert isolated("import os; assert os.getpid() == 2")


@needs_namespaces
@pytest.mark.parametrize(
    "start",
    [
        "if not os.fork(): os._exit(0)",
        "threading.Thread(target=print).start()",
        "subprocess.run(['/bin/true'])",
        "pid = libc.vfork()\nif pid == 0: os._exit(0)\nassert pid > 0",
        "assert libc.shmget(0, 1 << 20, 0o1600) >= 0",  # memory that no limit counts
    ],
)
def test_neither_processes_nor_threads_can_be_started(start: str) -> None:
    """Root's neither, whom RLIMIT_NPROC does not bind."""
    assert not isolated(f"import ctypes, os, subprocess, threading; libc = ctypes.CDLL(None)\n{start}")


@pytest.mark.usefixtures("no_namespaces")
def test_a_machine_without_namespaces_is_an_error() -> None:
    with pytest.raises(MachineError, match=r"^steps\.0\.executed: this machine has no user namespaces"):
        isolated("")


@pytest.mark.usefixtures("no_namespaces")
def test_the_folder_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = tmp_path / "folders"
    folders.mkdir()
    monkeypatch.setattr(sandboxed.tempfile, "tempdir", str(folders))
    assert passes("open('x', 'w').write('x')", "", False, 10, "")
    assert list(folders.iterdir()) == []


LOOKS = """
import gc
def f(backwards):
    wanted = backwards[::-1]
    held = [it for it in gc.get_objects() if isinstance(it, (tuple, list, dict))]
    parts = [part for it in held for part in (it.values() if isinstance(it, dict) else it)]
    return any(isinstance(part, str) and wanted in part for part in parts)
"""
RIGHT, TESTS = "def f(x): return x + 1", "assert f(1) == 2\nassert f(5) == 6"


@needs_namespaces
@pytest.mark.parametrize(
    ("code", "tests", "setup", "expected"),
    [
        (RIGHT, TESTS, "", True),
        ("def f(x): return x", TESTS, "", False),
        ("f = 3", TESTS, "", False),
        ("def g(x): return x + 1", TESTS, "", False),
        ("def f(: pass", TESTS, "", False),
        (RIGHT, "assert twice(f)(1) == 4", "def twice(g): return lambda x: 2 * g(x)\ndef f(x):\n  'One more.'\n", True),
        (RIGHT, TESTS, "def f(x):", True),  # no Python by itself
        ("def f(*parts, **named): return parts, named", "assert f(1, b=(2,)) == ((1,), {'b': (2,)})", "", True),
        ("seen = []\ndef f(x): seen.append(x); return len(seen)", "assert [f(0), f(0)] == [1, 2]", "", True),
        ("import numpy\ndef f(x): return [numpy.int64(x)]", "assert f(3) == [3]", "", True),
        (
            "from dataclasses import dataclass\n@dataclass\nclass A:\n  x: int\ndef f(x): return A(x).x",
            "f(1)",
            "",
            True,
        ),
        ("def f(x): raise KeyError(x)", "try: f('a')\nexcept KeyError: pass\nelse: raise ValueError", "", True),
        ("def f(x): return [[]] * x", "for n in range(500): assert len(f(n)) == n", "", True),
    ],
)
def test_a_function_is_tested_from_another_process(code: str, tests: str, setup: str, expected: bool) -> None:
    assert calling(code, tests, setup) is expected


CHEATS = [
    "import sys; sys.exit(0)",
    "def f(x): import os; os._exit(0)",
    "def f(x): raise SystemExit(0)",
    "class Equal:\n  __eq__ = lambda self, other: True\ndef f(x): return Equal()",
    "class Int(int):\n  __eq__ = lambda self, other: True\ndef f(x): return Int(0)",
    "import builtins; builtins.exec = builtins.compile = lambda *_: None\ndef f(x): return 0",
    "import sys; sys.settrace(lambda *_: None)\ndef f(x): return 0",
    "import atexit, os; atexit.register(os.write, 5, b'passed')\ndef f(x): return 0",
    "import os\nos._exit = print\ndef f(x): sys.exit(0)",
    "def f(x):\n  global check; check = print; return 0",
    "def f(x):\n  while True:\n    try: f(x)\n    except BaseException: pass",
    "import os\ndef f(x):\n  for i in range(64):\n    try: os.write(i, b'passed')\n    except OSError: pass",
    'import os\ndef f(x):\n  for i in range(64):\n    try: os.write(i, b\'["list", "returned", true]\\n\')\n'
    "    except OSError: pass",
    "def f(x):\n  deep = []\n  for _ in range(10**5): deep = [deep]\n  return deep",
    "def f(x):\n  loop = []\n  loop.append(loop)\n  return loop",
    "import sys\ndef f(x): return input()",
    "def f(x): return '0' * (1 << 29)",
]
ATTACKS = [
    "import os\nfor _ in range(9):\n  if not os.fork(): os._exit(0)",
    "import threading; threading.Thread(target=print).start()",
    "bytearray(10 << 30)",
    "while True: pass",
    "import socket; socket.create_connection(('127.0.0.1', 22), 1)",
    "open('/etc/passwd')",
    "import os; os.environ['HOME']",
    "open('/proc/1/environ')",
    "import os; assert os.getpid() == 2; os.kill(os.getppid(), 9); os.kill(-1, 9); os.kill(2, 9)",
    "while True: print('x' * 4096)",
    "input()",
    "import os, shutil; shutil.rmtree('/'); os.rmdir('/run-here')",
    "import os; os.symlink('/etc', 'etc'); open('etc/passwd')",
    "import os\nfor i in range(99): open(str(i), 'wb').write(bytes(1 << 20))",
    "(" * 10**5,
    "import ctypes; ctypes.string_at(0)",
]


def passing(codes: Iterable[str]) -> list[str]:
    """Those that pass ``TESTS``, of several at a time."""
    with ThreadPoolExecutor(4) as threads:
        passed = list(threads.map(lambda code: calling(code, TESTS, seconds=1), codes))
    return [code for code, good in zip(codes, passed, strict=True) if good]


@needs_namespaces
def test_code_cannot_pass_tests_without_doing_what_they_ask() -> None:
    assert passing([*CHEATS, RIGHT]) == [RIGHT]


@needs_namespaces
def test_hostile_code_fails_and_the_next_is_tested() -> None:
    """Nothing here does harm where it succeeds; the one that kills makes sure first that it is in its namespace."""
    assert passing([*(f"{attack}\n{RIGHT}" for attack in ATTACKS), RIGHT]) == [RIGHT]


@needs_namespaces
def test_the_process_of_the_code_does_not_hold_the_tests() -> None:
    assert calling(LOOKS, "# zanzibar\nassert not f('rabiznaz')")
    assert calling(LOOKS, "assert f('cg tropmi')"), "it finds what is there: its own text"


@needs_namespaces
def test_code_that_ends_early_fails_tests_that_do_not_call_it() -> None:
    assert calling(RIGHT, "")
    assert not calling("raise SystemExit", "")


@needs_namespaces
def test_what_is_no_answer_is_no_error_that_tests_could_want() -> None:
    wanting = "try: f(1)\nexcept Exception: pass\nelse: assert False"
    assert calling("def f(x): raise ValueError", wanting)
    lines = "import gc, socket\nfor it in gc.get_objects():\n  if isinstance(it, socket.socket): it.send(b'1\\n')\n"
    assert not calling("import os\ndef f(x): os._exit(0)", wanting)
    assert not calling(f"{lines}\ndef f(x): return 1", wanting)


@needs_namespaces
@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "import os; os.kill(os.getpid(), 19)"])
def test_code_that_waits_is_ended(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxed, "PATIENCE", 0)
    assert not calling(f"{code}\n{RIGHT}", TESTS, seconds=1)


@needs_namespaces
def test_code_that_does_not_end_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandboxed.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sandboxed, "PATIENCE", 5)
    name = f"left-{os.getpid()}"
    code = f"import ctypes, time; ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\ndef f(x): time.sleep(60)"
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(calling, code, TESTS, seconds=1)
        until(lambda: name in process_names())
        assert not running.result()
    until(lambda: name not in process_names())
    assert list(tmp_path.iterdir()) == []


def process_names() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended
            found.add(path.read_text().strip())
    return found


def until(happened: Callable[[], bool]) -> None:
    for _ in range(1000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


@needs_namespaces
def test_processes_that_wait_for_the_cpu_have_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = "import time\ndef f(x): time.sleep(2.5); return x"
    monkeypatch.setattr(sandboxed, "PATIENCE", 0)
    monkeypatch.setattr(sandboxed.os, "cpu_count", lambda: 2)
    assert function_passes(sleeps, "f", "f(1)", "", True, 1, "tasks.0", at_a_time=8)


@needs_namespaces
def test_tests_with_arguments_that_are_not_plain_data_are_an_error() -> None:
    with pytest.raises(UserError, match=r"^tasks\.0: tests give f an argument that is not plain data"):
        calling(RIGHT, "try: f(object())\nexcept Exception: pass")


@pytest.mark.usefixtures("no_namespaces")
def test_functions_need_namespaces_too() -> None:
    with pytest.raises(MachineError, match=r"^tasks\.0: this machine has no user namespaces"):
        calling(RIGHT, TESTS)
    assert function_passes(RIGHT, "f", TESTS, "", False, 10, "tasks.0")
    assert not function_passes("def f(x): return 0", "f", TESTS, "", False, 10, "tasks.0")
