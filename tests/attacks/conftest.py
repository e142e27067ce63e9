"""What attacks share."""

from pathlib import Path

import pytest

from support.workshop import make_workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workshop(tmp_path_factory.mktemp("workshop") / "w")
