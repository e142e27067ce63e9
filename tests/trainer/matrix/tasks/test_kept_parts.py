from pathlib import Path

import pytest
from pydantic import TypeAdapter

from trainer.matrix.tasks.kept_parts import KeptParts


def test_what_was_kept_is_found_and_damage_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = KeptParts(tmp_path / "parts", TypeAdapter(list[str]))
    assert parts.find(["a", 1]) is None
    parts.keep(["a", 1], ["x", "\ud7ff\n"])
    again = KeptParts(tmp_path / "parts", TypeAdapter(list[str]))
    assert again.find(["a", 1]) == ["x", "\ud7ff\n"]
    assert again.find(["a", 2]) is None
    (file,) = (tmp_path / "parts").iterdir()
    for damage in ('["x"', "[1]", "{}", ""):
        file.write_text(damage)
        caplog.clear()
        assert again.find(["a", 1]) is None
        assert "is damaged; this part is made again" in caplog.text
