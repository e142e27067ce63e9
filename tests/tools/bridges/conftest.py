from pathlib import Path

import pytest

from support.models import tiny_config, tiny_tokenizer


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's folder without weights."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny_config().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
