"""Tokens without an embedding in the teacher: an error if a text uses one, in plan and probe; otherwise harmless."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from support.models import VOCAB_SIZE, tiny_config, tiny_tokenizer, write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.estimate import survey
from teacher_cache.shards.reader import CacheReader
from teacher_cache.teacher_cache_cli import main

SPECIAL, PLAIN = "<|tool|>", "zyzzyva"


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """A teacher with ``VOCAB_SIZE`` tokens whose tokenizer has two more."""
    teacher = write_random_teacher(tmp_path / "teacher")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([SPECIAL], special_tokens=True)
    tokenizer.add_tokens([PLAIN])
    tokenizer.save_pretrained(teacher)
    write_text_corpus(tmp_path / "corpus")
    return cache_tree(teacher, tmp_path / "corpus", tmp_path / "cache", capture={"logits": {"k": 8}, "draws": None})


@pytest.mark.parametrize(("token", "number"), [(SPECIAL, VOCAB_SIZE), (PLAIN, VOCAB_SIZE + 1)])
def test_a_text_with_such_a_token_is_refused_in_plan_and_probe(tree: dict[str, Any], token: str, number: int) -> None:
    folder = Path(tree["teacher"]["path"])
    (folder.parent / "corpus/other.txt").write_text(f"def f1(x): return {token}\n")
    config = validate(CacheConfig, tree, "test")
    said = (
        rf"^teacher\.path: {folder}/tokenizer\w*\.json: token {number} \"{token.replace('|', '[|]')}\" is in the "
        rf"corpus \(.*other\.txt.*\), but teacher has a vocabulary of {VOCAB_SIZE}, ids 0 to {VOCAB_SIZE - 1}; "
    )
    for plan in (lambda: job.run(config), lambda: survey(config, 1)):
        with pytest.raises(UserError, match=said):
            plan()
    assert not list(Path(config.output.path).glob("*.tar")), "nothing is left"


def test_the_commands_report_it_in_one_line(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "corpus/other.txt").write_text(f"def f1(x): return {PLAIN}\n")
    path = tmp_path / "cache.json"
    path.write_text(json.dumps(tree))
    for arguments in (["plan", str(path)], ["plan", str(path), "--probe", "2"], ["plan", str(path), "--dry-run"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        assert f"has a vocabulary of {VOCAB_SIZE}" in " ".join(result.output.split())


def test_unused_tokens_beyond_the_model_are_allowed(tree: dict[str, Any], tmp_path: Path) -> None:
    config = validate(CacheConfig, tree, "test")
    assert job.run(config).complete
    reader = CacheReader(config.output.path)
    assert reader.manifest.tokenizer.vocab_size == VOCAB_SIZE + 2
    assert max(int(reader.read_tokens(position).input_ids.max()) for position in range(len(reader))) < VOCAB_SIZE


def test_a_padded_model_supports_them(tree: dict[str, Any], tmp_path: Path) -> None:
    write_random_teacher(tmp_path / "padded", vocab_size=VOCAB_SIZE + 64)
    for file in Path(tree["teacher"]["path"]).glob("tokenizer*.json"):
        (tmp_path / "padded" / file.name).write_text(file.read_text())
    (tmp_path / "corpus/other.txt").write_text(f"def f1(x): return {PLAIN}\n")
    config = validate(CacheConfig, tree | {"teacher": {"path": str(tmp_path / "padded"), "dtype": "float32"}}, "test")
    assert tiny_config().vocab_size == VOCAB_SIZE
    job.run(config)
    reader = CacheReader(config.output.path)
    ids = [reader.read_tokens(position).input_ids for position in range(len(reader))]
    assert max(int(each.max()) for each in ids) == VOCAB_SIZE + 1
