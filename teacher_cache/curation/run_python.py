"""Run a reply's Python and tests of it, as a script, in a process that may do as little as Linux allows.

Seconds, memory and file sizes are limited and the environment is empty. Namespaces of its own leave it no network, no
other process, and a file system that holds Python, read-only, and one small empty folder; it has no capabilities. Code
that sets out to pass its tests without doing what they ask can do that.

This file imports nothing of ours, so that no search path is needed.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES, FILE_BYTES, FILES = 1 << 30, 1 << 20, 64
NOT_ISOLATED = 77  # exit status
WORK = "run-here"
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin")
_NEW = 0x00020000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # mounts, IPC, users, processes, network
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 1 << 18  # of mount(2)
_AT_RECURSIVE, _READ_ONLY, _SET_ATTRIBUTES = 0x8000, 1, 442  # of mount_setattr(2)
_DIE_WITH_PARENT, _NO_NEW_PRIVILEGES, _CAPABILITIES_3 = 1, 38, 0x20080522  # of prctl(2) and capset(2)
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Read ``{"code", "tests", "isolated", "seconds"}`` and print ``true`` if both run to their end."""
    request = json.load(sys.stdin)
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    signal.alarm(2 * request["seconds"])  # even if it sleeps
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        isolate(Path.cwd())
    except OSError:
        if request["isolated"]:
            sys.exit(NOT_ISOLATED)
    reading, writing = os.pipe()
    if not os.fork():  # the first process of its namespace: with it, all others end
        _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        os.close(reading)
        child = os.fork()
        if not child:
            run(request["code"], request["tests"], request["seconds"], writing, nothing)
        os.waitpid(child, 0)
        os._exit(0)
    os.close(writing)
    os.wait()
    print(json.dumps(os.read(reading, 16) == b"passed"))


def isolate(folder: Path) -> None:
    """Enter namespaces of its own, with ``folder`` as the root of what is seen. Raises OSError if it must not."""
    user, group = os.getuid(), os.getgid()
    _check(_libc.unshare(_NEW))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    mount(None, "/", _RECURSIVE | _PRIVATE)
    mount("tmpfs", folder, 0)
    for seen in sorted({*map(Path, _SYSTEM), Path(sys.base_prefix), Path(sys.prefix)}):
        inside = folder / seen.relative_to("/")
        if seen.is_symlink() and str(seen) in _SYSTEM:  # such as lib -> usr/lib
            inside.symlink_to(os.readlink(seen))
        elif seen.is_dir() and not inside.exists():
            inside.mkdir(parents=True)
            mount(seen, inside, _BIND | _RECURSIVE)
    (folder / WORK).mkdir()
    os.chroot(folder)
    os.chdir("/")
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    _check(_libc.syscall(_SET_ATTRIBUTES, -100, b"/", _AT_RECURSIVE, attributes, ctypes.sizeof(attributes)))
    mount("tmpfs", f"/{WORK}", 0, "size=16m")
    os.chdir(f"/{WORK}")


def mount(source: str | Path | None, target: str | Path, flags: int, options: str = "") -> None:
    """mount(2), of a tmpfs if that is the source. Raises OSError."""
    kind = b"tmpfs" if source == "tmpfs" else None
    where_from = None if source is None else str(source).encode()
    _check(_libc.mount(where_from, str(target).encode(), kind, ctypes.c_ulong(flags), options.encode() or None))


def _check(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def run(code: str, tests: str, seconds: int, writing: int, nothing: int) -> None:
    """Run both in one scope, and say so at the end. Never returns."""
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _libc.capset((ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)())
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_NPROC: 0,
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    for each in (0, 1, 2):
        os.dup2(nothing, each)
    scope: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.suppress(BaseException):
        exec(compile(code, "reply", "exec"), scope)
        exec(compile(tests, "tests", "exec"), scope)
        os.write(writing, b"passed")
    os._exit(0)


if __name__ == "__main__":
    main()
