import io
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from schemas.cache_config import CacheConfig
from schemas.load import validate
from support.models import tiny_tokenizer
from teacher_cache.preview import as_dict, preview, show
from teacher_cache.teacher_cache_cli import main


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    chats = [
        {"messages": [{"role": "user", "content": "[bold]x[/] \x1b[31m"}, {"role": "assistant", "content": "日本"}]},
        {"messages": [{"role": "system", "content": "nothing to learn"}]},
        {"messages": 5},
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(each) + "\n" for each in chats))
    (tmp_path / "code.jsonl").write_text("".join(json.dumps({"text": f"x + {n}"}) + "\n" for n in range(5)))
    tree = {
        "teacher": {"path": str(tmp_path / "teacher")},
        "corpus": {
            "clean": False,
            "on_bad_record": "drop",
            "sources": [
                {"path": str(tmp_path / "chats.jsonl"), "format": "jsonl", "layer": "chat"},
                {"path": str(tmp_path / "code.jsonl"), "format": "jsonl", "layer": "code"},
            ],
        },
        "output": {"path": str(tmp_path / "cache")},
    }
    (tmp_path / "cache.yaml").write_text(yaml.safe_dump(tree))
    return validate(CacheConfig, tree, "test")


def printed(config: CacheConfig, **console: object) -> str:
    out = io.StringIO()
    show(preview(config, 2), 512, Console(file=out, width=80, soft_wrap=True, **console))  # type: ignore[arg-type]
    return out.getvalue()


def test_trained_tokens_are_in_brackets(config: CacheConfig) -> None:
    lines = printed(config).splitlines()
    assert "[bold]x[/] \\x1b[31m<|im_end|>" in lines  # neither markup nor terminal control
    assert "⟦日本<|im_end|>⟧" in lines
    assert "── chats.jsonl#1 · chat · " in "\n".join(lines)
    assert "x⟦ + 0⟧" in lines
    assert any("chats.jsonl (jsonl, layer chat): 3 documents, 1 samples, " in line for line in lines)
    assert any(line.endswith("1 no reply, 1 malformed") for line in lines)
    assert "    · chats.jsonl is read as jsonl" in lines
    assert "    · records are read as messages" in lines
    assert any(line.startswith("    · dropped (malformed;") for line in lines)
    assert any(line.startswith("  layer code: 5 documents, 5 samples, ") for line in lines)


def test_on_a_terminal_colours_take_the_place_of_brackets(config: CacheConfig) -> None:
    text = printed(config, force_terminal=True, color_system="standard")
    assert "⟦" not in text
    assert "\x1b[1;92m<|im_end|>\x1b[0m" in text or "\x1b[1;32m<|im_end|>\x1b[0m" in text
    assert "\x1b[31m" not in text  # although the corpus contains it


def test_as_json(config: CacheConfig, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["preview", str(tmp_path / "cache.yaml"), "-n", "3", "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found == as_dict(preview(config, 3))
    chat, code, _ = found["sequences"]
    assert (chat["layer"], code["layer"]) == ("chat", "code")
    assert [piece["text"] for piece in chat["pieces"] if piece["learned"]] == ["日本<|im_end|>"]
    assert sum(piece["tokens"] for piece in chat["pieces"]) == chat["tokens"]
    assert found["sources"][0]["counts"]["malformed"] == found["layers"]["chat"]["no_reply"] == 1
    assert not (tmp_path / "cache").exists()


def test_a_problem_ends_a_source_and_follows_its_counts(config: CacheConfig, tmp_path: Path) -> None:
    arguments = ["preview", str(tmp_path / "cache.yaml"), "--set", "corpus.on_bad_record=stop"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "error: " in done.stderr
    assert "chats.jsonl:3: messages is int 5" in done.stderr
    assert "⟦ + 0⟧" in done.stdout


def test_only_the_beginning_of_a_source_is_read(config: CacheConfig, tmp_path: Path) -> None:
    (tmp_path / "code.jsonl").write_text('{"text": "x + 1"}\n' * 250 + "broken\n")
    assert preview(config, 1).sources[1].counts["documents"] == 200


def test_long_sequences_are_cut(config: CacheConfig) -> None:
    out = io.StringIO()
    show(preview(config, 1), 4, Console(file=out, soft_wrap=True))
    assert " more tokens" in out.getvalue()
    assert "日本" not in out.getvalue()
