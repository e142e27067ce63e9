import os
from pathlib import Path

import pytest

from trainer.files import replace_text


def test_the_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    replace_text(tmp_path / "a.json", "old")
    replace_text(tmp_path / "a.json", "new · é")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new · é"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    replace_text(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(tmp_path / "a.json", "\udc80")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old"
