"""A filter of system calls (seccomp) that keeps a process from starting others, and threads.

RLIMIT_NPROC does not bind root, which is who runs in many containers. Shared memory goes too, since segments that no
process has mapped count towards no limit.
"""

import ctypes
import errno
import os
import struct

_MACHINES = {  # audit architecture; numbers of clone, fork, vfork, shmget; of clone3 everywhere 435
    "x86_64": (0xC000003E, (56, 57, 58, 29)),
    "aarch64": (0xC00000B7, (220, 194)),
}
_CLONE3 = 435
_OTHER_ABI = 0x40000000  # x32 calls of x86_64 have numbers from here on
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # of BPF
_NUMBER, _ARCHITECTURE = 0, 4  # places in seccomp_data
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000  # SECCOMP_RET_…
_SET_SECCOMP, _FILTER = 22, 2  # of prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def can_deny_processes() -> bool:
    """Whether this machine is known here, and its kernel has such filters."""
    no_filter = _libc.prctl(_SET_SECCOMP, _FILTER, None, 0, 0)
    return os.uname().machine in _MACHINES and no_filter == -1 and ctypes.get_errno() == errno.EFAULT


def deny_processes() -> None:
    """Let calls that start processes or threads fail from now on; needs ``no_new_privs``, and cannot be undone.

    Raises OSError if the kernel does not take the filter.
    """
    architecture, denied = _MACHINES[os.uname().machine]
    failing = _return(_ERROR | errno.EAGAIN)
    program = [_load(_ARCHITECTURE), _if(_IF_EQUAL, architecture, skip=1), _return(_KILL), _load(_NUMBER)]
    program += [_if(_IF_AT_LEAST, _OTHER_ABI, skip=0, otherwise=1), _return(_KILL)]
    for number in denied:
        program += [_if(_IF_EQUAL, number, skip=0, otherwise=1), failing]
    missing = _return(_ERROR | errno.ENOSYS)  # the C library then tries clone
    program += [_if(_IF_EQUAL, _CLONE3, skip=0, otherwise=1), missing, _return(_ALLOW)]
    whole = _Program(len(program), b"".join(program))
    if _libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(whole), 0, 0):
        raise OSError(ctypes.get_errno(), "no filters of system calls")


def _load(place: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, place)


def _if(test: int, value: int, skip: int, otherwise: int = 0) -> bytes:
    """Skip so many instructions if what was loaded passes the test, and so many otherwise."""
    return struct.pack("=HBBI", test, skip, otherwise, value)


def _return(action: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, action)
