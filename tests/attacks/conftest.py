"""What attacks share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.forker import Forker
from support.workshop import make_workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workshop(tmp_path_factory.mktemp("workshop") / "w")


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """One process that all commands are forked from; faults can be injected where there is a compiler."""
    with Forker(tmp_path_factory.mktemp("forker"), faults=shutil.which("gcc") is not None) as started:
        yield started
