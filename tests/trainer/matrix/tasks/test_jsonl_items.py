import gzip
import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from schemas.errors import UserError
from trainer.matrix.tasks.jsonl_items import read_items, unique


class Number(BaseModel):
    n: int


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(json.dumps({"n": n, "other": "x"}) for n in range(5)) + "\n\n")
    return path


def test_items_are_read_also_when_they_are_compressed(file: Path, tmp_path: Path) -> None:
    assert [one.n for one in read_items(str(file), Number)] == [0, 1, 2, 3, 4]
    assert [one.n for one in read_items(str(file), Number, 2)] == [0, 1]
    compressed = tmp_path / "items.jsonl.gz"
    compressed.write_bytes(gzip.compress(file.read_bytes()))
    assert read_items(str(compressed), Number) == read_items(str(file), Number)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"n": 1}\n{"n": "x"}\n', "line 2: n: "),
        (b'{"n": 1}\n{"m": 1}\n', "line 2: n: this key is required and missing"),
        (b"{\n", "line 1: "),
        (b"\n\n", "holds no item"),
        (gzip.compress(b'{"n": 1}\n' * 100, mtime=0)[:-9], "cannot be read"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_items(str(path), Number)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_missing_files_and_folders_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r": cannot be read: "):
            read_items(str(path), Number)


def test_names_are_unique() -> None:
    assert unique(["a", "b"], "x") == ["a", "b"]
    with pytest.raises(UserError, match=r"^x: 'a' is there twice"):
        unique(["a", "b", "a"], "x")
