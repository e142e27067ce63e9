"""Code that is run to be tested can do nothing else.

What is tried here must be harmless where it succeeds: the limits under test may be what is broken.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from schemas.errors import MachineError
from teacher_cache.curation import executed, run_python
from teacher_cache.curation.executed import passes


def isolated(code: str, tests: str = "", seconds: int = 10) -> bool:
    return passes(code, tests, True, seconds, "steps.0.executed")


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
    script = tmp_path / "run_python.py"
    source = Path(run_python.__file__).read_text()
    assert source.count("_check(_libc.unshare(_NEW))") == 1
    script.write_text(source.replace("_check(_libc.unshare(_NEW))", "raise PermissionError"))
    monkeypatch.setattr(run_python, "__file__", str(script))


@pytest.mark.parametrize(
    ("code", "tests", "expected"),
    [
        ("def f(x): return x + 1", "assert f(1) == 2", True),
        ("def f(x): return x", "assert f(1) == 2", False),
        ("def f(: pass", "", False),
        ("import sys; sys.exit(0)", "", False),
        ("import os; os._exit(0)", "", False),
        ("print('true')", "raise ValueError", False),
        ("import os; os.write(1, b'true'); os._exit(0)", "", False),
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
def test_processes_that_it_starts_end_with_it(tmp_path: Path) -> None:
    name = f"left-{os.getpid()}-{tmp_path.name}"
    code = f"""
import ctypes, os, time
try:
    if not os.fork():
        os.setsid()
        ctypes.CDLL(None).prctl(15, b"{name[-15:]}", 0, 0, 0)
        time.sleep(60)
except OSError:
    pass  # limited
"""
    assert isolated(code, seconds=5)
    names = [comm.read_text().strip() for comm in Path("/proc").glob("[0-9]*/comm") if comm.exists()]
    assert name[-15:] not in names


@pytest.mark.usefixtures("no_namespaces")
def test_a_machine_without_namespaces_is_an_error() -> None:
    with pytest.raises(MachineError, match=r"^steps\.0\.executed: this machine has no user namespaces"):
        isolated("")


@pytest.mark.usefixtures("no_namespaces")
def test_the_folder_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = tmp_path / "folders"
    folders.mkdir()
    monkeypatch.setattr(executed.tempfile, "tempdir", str(folders))
    assert passes("open('x', 'w').write('x')", "", False, 10, "")
    assert list(folders.iterdir()) == []
