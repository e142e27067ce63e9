"""`inspect` on every signal, against the reader."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from schemas.cache_config import CacheConfig, LogitsCapture
from schemas.errors import UserError
from schemas.load import validate
from support.models import write_random_teacher, write_text_corpus
from support.synthetic import random_shards, write_cache
from support.workspace import cache_tree
from teacher_cache.job import run
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.hidden.capture import to_floats
from tools.cache_tools_cli import main
from tools.looking.inspect import describe, sample_rows

EVERYTHING = {
    "logits": {"k": 8},
    "hidden": {"layers": [1, 2], "positions": {"every": 3}},
    "attention": {"heads": 2, "positions": {"every": 4}},
    "draws": {"n": 5, "temperatures": [1.0, 3.0]},
    "final": {},
}


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("inspect")
    teacher, corpus = write_random_teacher(folder / "teacher"), write_text_corpus(folder / "corpus", documents=2)

    def cache(name: str, capture: dict[str, Any]) -> str:
        tree = cache_tree(teacher, corpus, folder / name, capture=capture)
        if not (folder / name).exists():
            run(validate(CacheConfig, tree, "test"))
        return str(folder / name)

    return cache


def test_rows_show_what_each_signal_holds(write) -> None:
    url = write("everything", EVERYTHING)
    reader = CacheReader(url, ("tokens", "logits", "hidden", "attention", "draws", "final"))
    rows = sample_rows(url, reader.keys[0], limit=9)
    assert [row["row"] for row in rows] == list(range(9))
    hidden, attention, draws = reader.read_hidden(0), reader.read_attention(0), reader.read_draws(0)
    logits = reader.read_logits(0)
    capture = reader.manifest.capture.hidden
    assert capture is not None
    norms = np.linalg.norm(to_floats(hidden, capture).numpy(), axis=2)
    for row in rows:
        t = row["row"]
        assert (row["hidden_norms"] is None) == (t % 3 != 0)
        assert (row["attention"] is None) == (t % 4 != 0)
        if t % 3 == 0:
            np.testing.assert_allclose(row["hidden_norms"], norms[t // 3], atol=1e-3)
        if t % 4 == 0:
            assert [head["head"] for head in row["attention"]] == attention.heads.tolist()
            assert [head["key"] for head in row["attention"]] == attention.keys[t // 4, :, 0].tolist()
        assert row["best_ids"] == logits.ids[logits.positions.tolist().index(t), :3].tolist()
        assert row["drawn_ids"] == draws.ids[draws.positions.tolist().index(t)].tolist()
        assert row["final_norm"] > 0


@pytest.mark.parametrize("positions", ["all", "loss_mask"])
def test_rows_that_are_not_stored_have_no_guesses(tmp_path: Path, positions: str) -> None:
    capture = LogitsCapture(k=8, positions=positions)
    write_cache(str(tmp_path), random_shards([[20]], capture=capture, counting=0.5), capture=capture)
    reader = CacheReader(str(tmp_path))
    tokens, logits = reader.read_tokens(0), reader.read_logits(0)
    rows = sample_rows(str(tmp_path), reader.keys[0], limit=100)
    assert [row["counts"] for row in rows] == tokens.loss_mask.tolist()
    assert 0 < tokens.loss_mask.sum() < 19
    for t, row in enumerate(rows):
        if t not in logits.positions:
            assert row["best_ids"] is row["best_probabilities"] is row["next_probability"] is None
            continue
        (p,) = np.flatnonzero(logits.positions == t)
        assert row["best_ids"] == logits.ids[p, :3].tolist()
        np.testing.assert_allclose(row["best_probabilities"], np.exp(logits.logprobs[p, :3]), atol=1e-4)
        if t == 19:
            assert row["next_probability"] is None
        else:
            assert row["next_probability"] == pytest.approx(np.exp(logits.next_logprob[p]))
    stored = sum(row["best_ids"] is not None for row in rows)
    assert stored == (20 if positions == "all" else tokens.loss_mask.sum())
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path), "--sample", reader.keys[0]], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    as_json = CliRunner().invoke(main, ["inspect", str(tmp_path), "--sample", reader.keys[0], "--rows", "20", "--json"])
    assert as_json.exit_code == 0, as_json.output
    assert json.loads(as_json.stdout) == rows


def test_a_cache_of_logits_has_no_other_columns(write) -> None:
    url = write("logits", {"draws": None})
    (row,) = sample_rows(url, CacheReader(url).keys[0], limit=1)
    assert set(row) == {"row", "token_id", "token", "counts", "best_ids", "best_probabilities", "next_probability"}
    assert "head" not in describe(url)["bytes"]


def test_the_head_counts_among_the_bytes(write) -> None:
    url = write("everything", EVERYTHING)
    assert describe(url)["bytes"]["head"] == (Path(url) / "head.safetensors").stat().st_size


def test_the_table_has_a_column_for_each_signal(write) -> None:
    url = write("everything", EVERYTHING)
    result = CliRunner().invoke(main, ["inspect", url, "--sample", CacheReader(url).keys[0]], env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    for title in ("hidden norms", "final norm", "head → strongest key", "distinct draws"):
        assert title in result.output


def test_a_key_that_is_not_there(write) -> None:
    with pytest.raises(UserError, match="no sample 'abc' among"):
        sample_rows(write("logits", {"draws": None}), "abc", 3)


def test_a_sample_is_shown_from_the_first_row_that_counts_on(tmp_path: Path) -> None:
    """Rows start after the prompt, which has none stored."""
    (pairs,) = random_shards([[60]])
    tokens, logits = pairs[0]
    mask = tokens.loss_mask & (np.arange(60) >= 45)
    kept = {name: array[45:] for name, array in vars(logits).items() if name != "num_tokens"}
    write_cache(str(tmp_path), [[(replace(tokens, loss_mask=mask), replace(logits, **kept))]])
    rows = sample_rows(str(tmp_path), tokens.key, limit=10)
    assert [row["row"] for row in rows] == list(range(45, 55))
    assert all(row["counts"] and row["best_ids"] for row in rows)
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path), "--sample", tokens.key]).stdout
    assert "rows before 45 do not count" in shown
