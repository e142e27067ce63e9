"""Convert exceptions of the machine, a file system or a store's client to one-line errors with advice.

Store clients are recognised by what their exceptions carry (``errno``, HTTP status, error code), so that none has to be
imported here.
"""

import errno
import os
import re
from collections.abc import Iterator

from schemas.errors import (
    AccessError,
    ConflictError,
    FullError,
    MachineError,
    StoreError,
    UserError,
)

Kind = tuple[type[UserError], str]  # error class, advice
_IN_RUST = re.compile(r'\(os error (\d+)\)(?: at path "([^"]*)")?')

EXPIRED: Kind = (AccessError, "the credentials have expired: get new ones")
REFUSED: Kind = (AccessError, "check the credentials and their permissions")
MODES: Kind = (AccessError, "get permission for it, or choose another place")
FULL: Kind = (FullError, "free some space, or choose another place")
UNREACHABLE: Kind = (StoreError, "the store cannot be reached: check the address, the network and its settings")
FAILING: Kind = (StoreError, "the store does not respond correctly: try again later")
CHANGED: Kind = (ConflictError, "another process has changed it meanwhile: run again")
ABSENT: Kind = (UserError, "")

BY_ERRNO: dict[int, Kind] = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: (FullError, "the quota is exhausted: free some space, or have it raised"),
    errno.EFBIG: (FullError, "the file size limit is reached: see `ulimit -f`, or the file system"),
    errno.EACCES: MODES,
    errno.EPERM: MODES,
    errno.EROFS: (AccessError, "the file system is read-only: choose another place"),
    errno.EMFILE: (MachineError, "the process may not open more files: raise `ulimit -n`"),
    errno.ENFILE: (MachineError, "the machine may not open more files: raise fs.file-max"),
    errno.ENOMEM: (MachineError, "the machine is out of memory"),
    errno.EAGAIN: (MachineError, "a limit of the machine is reached: see `ulimit -a`"),
    errno.EIO: (MachineError, "the disk or its connection failed: check the machine's log"),
    errno.ESTALE: (StoreError, "the network file system has dropped the file: remount it and run again"),
    errno.EREMOTEIO: FAILING,
    errno.EBUSY: FAILING,
    errno.ENOENT: ABSENT,
    errno.ENOTDIR: ABSENT,
    errno.EISDIR: ABSENT,
    errno.EEXIST: ABSENT,
    errno.ENAMETOOLONG: ABSENT,
    errno.ELOOP: ABSENT,
    errno.EINVAL: ABSENT,
    errno.ENXIO: ABSENT,
    errno.ENODEV: ABSENT,
    **dict.fromkeys(
        (
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.ECONNABORTED,
            errno.EHOSTUNREACH,
            errno.ENETUNREACH,
            errno.ENETDOWN,
            errno.EHOSTDOWN,
            errno.ETIMEDOUT,
            errno.EADDRNOTAVAIL,
        ),
        UNREACHABLE,
    ),
}
BY_CODE: dict[str, Kind] = {  # of S3 and compatible stores
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"), EXPIRED),
    **dict.fromkeys(("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled"), REFUSED),
    "RequestExpired": (AccessError, "the request arrived too late: set this machine's clock"),
    "RequestTimeTooSkewed": (AccessError, "the store's clock differs: set this machine's clock"),
    **dict.fromkeys(("PreconditionFailed", "ConditionalRequestConflict", "OperationAborted"), CHANGED),
    "SlowDown": (StoreError, "use fewer workers, or wait"),
    **dict.fromkeys(("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"), FULL),
    "NoSuchBucket": (UserError, "correct its name, or create it"),
    "InvalidBucketName": (UserError, "correct its name"),
}
BY_STATUS: dict[int, Kind] = {
    400: (AccessError, "the store rejects the request as invalid: have the credentials expired?"),
    **dict.fromkeys((401, 403, 407), REFUSED),
    **dict.fromkeys((409, 412), CHANGED),
    507: FULL,
}
BY_NAME: dict[str, Kind] = {  # class names of client exceptions
    "NoCredentialsError": (AccessError, "no credentials were found: set them up as for the store's own tools"),
    "PartialCredentialsError": REFUSED,
    "TokenRetrievalError": EXPIRED,
    "UnauthorizedSSOTokenError": EXPIRED,
    "SSOTokenLoadError": EXPIRED,
    "ProfileNotFound": (UserError, "correct the name of the profile"),
    "EndpointConnectionError": UNREACHABLE,
    "ConnectTimeoutError": UNREACHABLE,
    "gaierror": UNREACHABLE,
    "ClientConnectorError": UNREACHABLE,
    "ClientConnectorDNSError": UNREACHABLE,
}


def os_error_in(error: BaseException) -> OSError | None:
    """The OSError that a library written in Rust (safetensors, tokenizers) tells in the text of another exception."""
    found = _IN_RUST.search(str(error))
    if found is None:
        return None
    return OSError(int(found[1]), os.strerror(int(found[1])), found[2])


def failure(error: BaseException, what: str, more: str = "") -> UserError:
    """The UserError that says ``what`` went wrong (such as "FILE: cannot be read"), why, and what to do.

    ``more`` follows the reason. A UserError is returned unchanged.
    """
    if isinstance(error, UserError):
        return error
    kind, advice = _kind(error)
    return kind("; ".join(part for part in (f"{what}: {reason(error)}", more, advice) if part))


def is_of_the_store(error: BaseException) -> bool:
    """Whether the store or the network failed, so that a retry may help."""
    return _kind(error)[0] is StoreError


def reason(error: BaseException) -> str:
    """The reason, in the words of the exception."""
    if isinstance(error, TimeoutError):
        return str(error) or "no answer in time"
    if isinstance(error, MemoryError):
        return "out of memory"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _kind(error: BaseException) -> Kind:
    for cause in _causes(error):
        if kind := _of(cause):
            return kind
    return FAILING


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The chain of causes, innermost first: that is the most specific."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain and len(chain) < 10:
        chain.append(found)
        found = found.__cause__
    return reversed(chain)


def _of(error: BaseException) -> Kind | None:
    if isinstance(error, UserError):
        return type(error), ""
    if isinstance(error, MemoryError):
        return BY_ERRNO[errno.ENOMEM]
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        if kind := BY_CODE.get(str(response.get("Error", {}).get("Code"))):
            return kind
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return None if status == 404 else BY_STATUS.get(status, FAILING)
    for name in (cls.__name__ for cls in type(error).__mro__):
        if name in BY_NAME:
            return BY_NAME[name]
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return BY_STATUS.get(status, FAILING)
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number in BY_ERRNO:
        return BY_ERRNO[number]
    if isinstance(error, TimeoutError | ConnectionError):
        return UNREACHABLE if isinstance(error, ConnectionError) else FAILING
    if isinstance(error, PermissionError):
        return REFUSED
    return ABSENT if isinstance(error, OSError | ValueError) else None
