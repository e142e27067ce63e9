"""For all tests: no hub, and a real S3 server (moto in a process of its own, reached by plain ``s3://`` URLs)."""

import gc
import itertools
import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from support.amount import amount
from support.s3_server import BUCKET
from support.s3_server import s3_server as started_s3_server

EXAMPLES = amount(50, full=100)  # of each property, unless it says how many
hypothesis.settings.register_profile("project", deadline=None, max_examples=EXAMPLES)  # a test is not timed
hypothesis.settings.load_profile("project")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a script runs the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # commands hear Ctrl-C as from a terminal
_prefixes = itertools.count()

LONGEST_FIRST = (
    "engines/test_families.py",
    "attacks/test_hostile_store.py",
    "attacks/test_injected_faults.py",
    "attacks/test_two_writers.py",
    "attacks/test_killed_commands.py",
    "engines/test_engines.py",
    "engines/test_tensor_parallel.py",
    "trainer/test_ranks.py",
    "trainer/test_killed_jobs.py",
    "system/test_kill_caching.py",
    "system/test_kill_sharing.py",
    "system/test_training.py",
    "system/test_bad_input.py",
    "system/test_fuzz.py",
    "system/test_tampering.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take a minute, so that none of them runs alone at the end."""

    def place(item: pytest.Item) -> int:
        name = "/".join(item.path.parts[-2:])
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What is imported by now is never garbage: collections need not look at it again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The server's endpoint; while it runs, the environment's credentials and endpoint are its own."""
    with started_s3_server() as server:
        yield server.endpoint


@pytest.fixture
def s3_url(s3_server: str) -> str:
    """An ``s3://`` prefix that nothing was written to."""
    return f"s3://{BUCKET}/{next(_prefixes)}"
