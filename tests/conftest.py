"""For all tests: no hub, and a real S3 server (moto in a process of its own, reached by plain ``s3://`` URLs)."""

import itertools
import os
from collections.abc import Iterator

import pytest

from benchmarks.s3 import BUCKET
from benchmarks.s3 import s3_server as started_s3_server

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_prefixes = itertools.count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The server's endpoint; while it runs, the environment's credentials and endpoint are its own."""
    with started_s3_server() as server:
        yield server.endpoint


@pytest.fixture
def s3_url(s3_server: str) -> str:
    """An ``s3://`` prefix that nothing was written to."""
    return f"s3://{BUCKET}/{next(_prefixes)}"
