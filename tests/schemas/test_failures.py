"""Each cause maps to its class, and so to its exit status, with fitting advice."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from schemas.errors import AccessError, ConflictError, CorruptCacheError, FullError, MachineError, StoreError, UserError
from schemas.failures import failure, is_of_the_store, os_error_in
from schemas.regular_files import NotRegularError


class ClientError(Exception):
    """As botocore raises it."""

    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(code)
        self.response: dict[str, Any] = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


def translated(code: str, status: int = 400) -> OSError:
    """As s3fs re-raises it: as EIO or PermissionError, with the original as its cause."""
    error = OSError(errno.EIO, code)
    error.__cause__ = ClientError(code, status)
    return error


def of(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (of(errno.ENOSPC), FullError, "free some space"),
        (of(errno.EDQUOT), FullError, "quota"),
        (of(errno.EFBIG), FullError, "ulimit -f"),
        (of(errno.EACCES), AccessError, "permission"),
        (of(errno.EROFS), AccessError, "read-only"),
        (of(errno.EMFILE), MachineError, "ulimit -n"),
        (of(errno.EIO), MachineError, "disk"),
        (MemoryError(), MachineError, "memory"),
        (of(errno.ECONNREFUSED), StoreError, "cannot be reached"),
        (socket.gaierror(-2, "Name or service not known"), StoreError, "cannot be reached"),
        (TimeoutError(), StoreError, "no answer in time"),
        (translated("ExpiredToken"), AccessError, "expired"),
        (translated("AccessDenied", 403), AccessError, "credentials"),
        (translated("PreconditionFailed", 412), ConflictError, "another process"),
        (translated("InternalError", 500), StoreError, "try again later"),
        (of(errno.ENOENT), UserError, "No such file"),
        (NotRegularError("it is a named pipe, not a regular file"), UserError, "named pipe"),
        (ValueError("embedded null byte"), UserError, "null byte"),
    ],
)
def test_a_cause_has_a_class_and_advice(error: Exception, kind: type[UserError], advice: str) -> None:
    found = failure(error, "a.json: cannot be read")
    assert type(found) is kind
    assert str(found).startswith("a.json: cannot be read: ")
    assert advice in str(found)
    assert is_of_the_store(error) is (kind is StoreError), "only what the store does is asked for again"


def test_user_errors_pass_unchanged() -> None:
    error = CorruptCacheError("a.json: damaged")
    assert failure(error, "anything") is error


def test_an_error_of_a_rust_library_is_one_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError) as caught:
        save_file({"weight": np.zeros(2)}, str(tmp_path / "missing" / "file"))
    found = os_error_in(caught.value)
    assert found is not None
    assert found.errno == errno.ENOENT
    assert os_error_in(ValueError("os error")) is None
    told = os_error_in(Exception('I/O error: No space left on device (os error 28) at path "/a b/c"'))
    assert told is not None
    assert (told.errno, told.filename) == (errno.ENOSPC, "/a b/c")
