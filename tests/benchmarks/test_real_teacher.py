import pytest

from benchmarks.real_teacher import find_packaged, make_teacher
from schemas.errors import UserError


def test_a_missing_package_is_one_line_that_says_what_to_install() -> None:
    with pytest.raises(UserError, match="pip install no-such"):
        find_packaged("no_such_module", "*.gguf", "no-such==1")


def test_an_existing_teacher_is_left_alone(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert make_teacher(tmp_path) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch) -> None:
    def fail(_gguf, folder) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise RuntimeError("disk full")

    monkeypatch.setattr("benchmarks.real_teacher._convert", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        make_teacher(tmp_path / "teacher")
    assert list(tmp_path.iterdir()) == []
