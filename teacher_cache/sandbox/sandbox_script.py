"""Run Python and tests of it, as the script of ``sandboxed``, in confined processes.

Either both run in one process, where code that sets out to pass its tests without doing what they ask can do that. Or
the code defines one function, which the tests, in a process of their own, call through a socket: nothing that the code
does reaches the tests, only the plain data that its function returns.
"""

import builtins
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from teacher_cache.sandbox.confinement import NOT_ISOLATED, confined, die_with_parent
from teacher_cache.sandbox.plain_values import from_line, to_line

LINE_BYTES = 64 << 20  # of what a function may return
READY = b"ready\n"
PASSED, FAILED, NOT_PLAIN = "passed", "failed", "not plain"


class Request(NamedTuple):
    """What is to be run."""

    code: str
    function: str  # that the tests call; "": they run in the scope of the code
    setup: str  # what comes before both, where there is a function
    isolated: bool
    seconds: int  # of the CPU, for each process
    wait: int  # seconds of the clock, for all


def main() -> None:
    """Read a Request and its tests; print ``passed``, ``failed``, or ``not plain`` for tests that no socket carries."""
    request = Request(**_next_part())
    die_with_parent()
    signal.alarm(request.wait)  # even if it sleeps
    print(apart(request) if request.function else together(request))


def parts(request: Request, tests: str) -> bytes:
    """What ``main`` reads: two parts of JSON, each after its size, so that none of the second is read too early."""
    written = [json.dumps(each).encode() for each in (request._asdict(), tests)]
    return b"".join(b"%16d" % len(each) + each for each in written)


def _next_part() -> Any:
    return json.loads(_read(int(_read(16))))


def _read(size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += os.read(0, size - len(found))
    return found


def together(request: Request) -> str:
    """Run code and tests in one process."""
    tests = _next_part()
    reading, writing = os.pipe()
    mark = secrets.token_bytes(16)
    keeper = _start(lambda: _run_both(request, tests, writing, mark), request)
    os.close(writing)
    _end(keeper)
    return PASSED if os.read(reading, 32) == mark else FAILED


def _run_both(request: Request, tests: str, writing: int, mark: bytes) -> None:
    run, write, leave = exec, os.write, os._exit  # the code may put others in their place
    both = [compile(request.code, "reply", "exec"), compile(tests, "tests", "exec")]
    scope: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.suppress(BaseException):
        for each in both:
            run(each, scope)
        write(writing, mark)
    leave(0)


def apart(request: Request) -> str:
    """Run the code in one process, and the tests in another that calls its function."""
    of_tests, of_code = socket.socketpair()
    coder = _start(lambda: _serve(request, of_code), request)
    tests = _next_part()  # now, so that the process of the code does not hold them
    of_code.close()  # so that the tests see its end with that of the code
    reading, writing = os.pipe()  # which the code does not have
    tester = _start(lambda: _test(request, tests, of_tests, writing), request)
    os.close(writing)
    _end(tester)
    os.kill(coder, signal.SIGKILL)
    written = os.read(reading, 32).decode()
    return NOT_PLAIN if NOT_PLAIN in written else written or FAILED


def _serve(request: Request, of_code: socket.socket) -> None:
    """Define the function, then answer calls of it."""
    module = ModuleType("reply")
    sys.modules["reply"] = module
    _set_up(request, vars(module))
    exec(compile(request.code, "reply", "exec"), vars(module))
    function = getattr(module, request.function)
    with of_code.makefile("rwb") as calls:
        calls.write(READY)
        calls.flush()
        for line in calls:
            args, named = from_line(line)
            try:
                answer = to_line(("returned", function(*args, **named)))
            except Exception as error:
                answer = to_line(("raised", type(error).__name__, str(error)))
            calls.write(answer)
            calls.flush()


def _test(request: Request, tests: str, of_tests: socket.socket, writing: int) -> None:
    """Run the tests, and say at their end that they passed."""
    scope: dict[str, Any] = {"__name__": "tests"}
    with of_tests.makefile("rwb") as calls, contextlib.suppress(BaseException):
        _set_up(request, scope)
        scope[request.function] = _caller(calls, writing)
        if calls.readline(LINE_BYTES) != READY:
            return
        exec(compile(tests, "tests", "exec"), scope)
        os.write(writing, PASSED.encode())


def _set_up(request: Request, scope: dict[str, Any]) -> None:
    """Run the setup, unless it is the beginning of something and no Python by itself."""
    with contextlib.suppress(SyntaxError):
        exec(compile(request.setup, "setup", "exec"), scope)


def _caller(calls: Any, writing: int) -> Callable[..., Any]:
    """The function, as the tests see it. Whatever is no answer ends them: they could take an error for one."""

    def call(*args: Any, **named: Any) -> Any:
        try:
            asked = to_line((args, named))
        except TypeError:
            os.write(writing, NOT_PLAIN.encode())
            raise SystemExit from None
        try:
            calls.write(asked)
            calls.flush()
            kind, *found = from_line(calls.readline(LINE_BYTES))
            error = None if kind == "returned" else _raised(*found)
        except Exception:
            raise SystemExit from None
        if error is not None:
            raise error
        return found[0]

    return call


def _raised(name: str, text: str) -> Exception:
    kind = getattr(builtins, name, None)
    return kind(text) if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(text)


def _start(work: Callable[[], object], request: Request) -> int:
    return confined(work, Path(tempfile.mkdtemp(dir=Path.cwd())), request.isolated, request.seconds)


def _end(keeper: int) -> None:
    """Wait for a confined process."""
    _, status = os.waitpid(keeper, 0)
    if os.waitstatus_to_exitcode(status) == NOT_ISOLATED:
        sys.exit(NOT_ISOLATED)
