"""What a student with another tokenizer would be taught: counted, shown, and refused where it cannot be known."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from schemas.errors import UserError
from support.byte_student import write_byte_student
from support.golden import BUNDLED, WITH_CHATS
from support.models import tiny_tokenizer
from teacher_cache.retarget.row_targets import Kind
from tools.cache_tools_cli import main
from tools.looking.align import KIND_NAMES, align


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tokenizer of the golden cache's teacher."""
    folder = tmp_path_factory.mktemp("own")
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One of single bytes, with a template of its own."""
    return write_byte_student(tmp_path_factory.mktemp("other"))


def counts(cache: Path, tokenizer: str) -> dict[str, Any]:
    return align(str(cache), tokenizer, None).summary()


def test_the_teachers_own_tokenizer_is_taught_all_but_blanks(own: str) -> None:
    found = counts(WITH_CHATS, own)
    assert found["taught"] == {"strict": 1.0, "border": 1.0, "all": 1.0}
    assert found["student_tokens"] == found["teacher_tokens"]
    assert found["crossing"] == found["samples_left_out"] == 0
    assert found["kinds"]["stop"] == 4  # of each chat's reply
    assert {name for name, count in found["kinds"].items() if count} <= {"equal", "stop", "blank"}


def test_a_tokenizer_of_bytes_begins_inside_of_most_tokens(other: str) -> None:
    found = counts(WITH_CHATS, other)
    kinds = found["kinds"]
    assert sum(kinds.values()) == found["learned_student_tokens"]
    assert kinds["inside"] > 50
    assert kinds["stop"] == 4
    assert found["crossing"] == 0  # no token is longer than a byte
    assert found["taught"]["strict"] < found["taught"]["border"] < found["taught"]["all"]
    assert 0 < found["mapped_mass"] <= 1


def test_the_command_shows_kinds_shares_and_tokens(other: str) -> None:
    shown = CliRunner().invoke(main, ["align", str(WITH_CHATS), other, "--all"])
    assert shown.exit_code == 0, shown.output
    assert all(name in shown.stdout for name in KIND_NAMES.values())
    assert "taught of the tokens that are not blank: strict " in shown.stdout
    assert "│" in shown.stdout.splitlines()[-1]
    printed = json.loads(CliRunner().invoke(main, ["align", str(WITH_CHATS), other, "--all", "--json"]).stdout)
    assert printed == counts(WITH_CHATS, other)
    assert [token["kind"] for token in printed["examples"][0]["tokens"]].count("no_row") == 0
    assert {kind.name.lower() for kind in Kind} == set(printed["kinds"])


def test_a_cache_without_a_vocabulary_is_refused(own: str) -> None:
    with pytest.raises(UserError, match=r"no vocabulary\.arrow \(format 1\.1\).*`cache-tools upgrade`"):
        align(str(BUNDLED), own, None)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["align", str(WITH_CHATS), str(tmp_path)])
    assert shown.exit_code == 2
    assert shown.stderr.startswith(f"error: tokenizer: {tmp_path} (exists): cannot load a tokenizer")
