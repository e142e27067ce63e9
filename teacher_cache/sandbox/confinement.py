"""Confine a process: namespaces, a file system with nothing in it, limits, no capabilities, no further processes.

Seconds, memory and file sizes are limited. Namespaces of its own leave it no network, no other process, and a file
system that holds Python, read-only, and one small empty folder. A filter of system calls keeps it from starting
processes and threads, which the limit on their number does not do for root.
"""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from teacher_cache.sandbox.syscall_filter import can_deny_processes, deny_processes

MEMORY_BYTES, FILE_BYTES, FILES = 1 << 30, 1 << 20, 64
NOT_ISOLATED = 77  # exit status
WORK = "run-here"
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin")
_NEW = 0x00020000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000  # mounts, IPC, users, processes, network
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 1 << 18  # of mount(2)
_AT_RECURSIVE, _READ_ONLY, _SET_ATTRIBUTES = 0x8000, 1, 442  # of mount_setattr(2)
_DIE_WITH_PARENT, _NO_NEW_PRIVILEGES, _CAPABILITIES_3 = 1, 38, 0x20080522  # of prctl(2) and capset(2)
_libc = ctypes.CDLL(None, use_errno=True)


def confined(work: Callable[[], object], folder: Path, isolated: bool, seconds: int) -> int:
    """Start ``work`` in a confined process; returns the id of one that ends when that does, and ends it if killed.

    folder: an empty one, in whose place the new file system is seen. isolated: whether namespaces are required; if so
    and there are none, the exit status is ``NOT_ISOLATED``. seconds: of the CPU.
    """
    keeper = os.fork()
    if keeper:
        return keeper
    status = 1
    try:
        die_with_parent()
        status = _keep(work, folder, isolated, seconds)
    finally:
        os._exit(status)


def _keep(work: Callable[[], object], folder: Path, isolated: bool, seconds: int) -> int:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.chdir(folder)
    try:
        isolate(folder)
    except OSError:
        if isolated:
            return NOT_ISOLATED
    if not os.fork():  # the first process of its namespace: with it, all others end
        die_with_parent()
        if not os.fork():
            try:
                limit(seconds, nothing)
                work()
            finally:
                os._exit(0)
        os.wait()
        os._exit(0)
    os.wait()
    return 0


def die_with_parent() -> None:
    """Have this process killed when its parent dies."""
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def isolate(folder: Path) -> None:
    """Enter namespaces of its own, with ``folder`` as the root of what is seen. Raises OSError if it must not."""
    user, group = os.getuid(), os.getgid()
    if user == 0 and not can_deny_processes():
        raise OSError("nothing limits the number of root's processes")
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


def limit(seconds: int, nothing: int) -> None:
    """Give up what can be given up; input and output become ``nothing``, an open file."""
    die_with_parent()
    _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _libc.capset((ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)())
    if can_deny_processes():
        deny_processes()
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_NPROC: 0,
    }
    for each, most in limits.items():
        resource.setrlimit(each, (most, most))
    for each in (0, 1, 2):
        os.dup2(nothing, each)
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
