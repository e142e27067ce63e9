"""Why a disk or a store did not take or give a file, and what helps against that."""

import errno

from teacher_cache.shards.conditional import code_of

_BY_NUMBER = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "the quota is used up: free some space, or have it raised",
    errno.EFBIG: "files of this size are not allowed there: choose smaller shards or another place",
    errno.EACCES: "get permission for it, or choose another place",
    errno.EPERM: "get permission for it, or choose another place",
    errno.EROFS: "it is mounted read-only: choose another place",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files: end other programs",
    errno.EIO: "the disk failed: look at the system's log",
    errno.ESTALE: "the network's file system was mounted anew",
    errno.ENOENT: "the folder is gone: see whether somebody removed or unmounted it",
    errno.ENOTDIR: "a file stands where a folder should: choose another place",
    errno.EISDIR: "a folder stands where a file should: choose another place",
    errno.ENAMETOOLONG: "choose a shorter path",
}
_BY_CODE = {
    "AccessDenied": "ask for permission to write there",
    "403": "ask for permission to write there",
    "ExpiredToken": "renew your credentials",
    "InvalidAccessKeyId": "check your credentials",
    "SignatureDoesNotMatch": "check your credentials",
    "NoSuchBucket": "check the bucket's name",
    "404": "check the bucket's name",
    "SlowDown": "use fewer workers, or wait",
}
_NETWORK = "check the network and the store's address"


def reason(error: BaseException) -> str:
    """What happened, in few words."""
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def advice(error: BaseException) -> str:
    """What helps: a clause in the imperative."""
    found: BaseException | None = error
    while found is not None:
        if code := code_of(found):
            return _BY_CODE.get(code, f"the store answered {code}: ask who runs it")
        if isinstance(found, ConnectionError | TimeoutError):
            return _NETWORK
        if isinstance(found, OSError) and found.errno in _BY_NUMBER:
            return _BY_NUMBER[found.errno]
        found = found.__cause__
    return "see what is wrong there"
