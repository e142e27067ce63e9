"""Figures of a cache against float64 references over the whole vocabulary, and the command's output."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from schemas.cache_config import CaptureConfig, CodecConfig, DrawsCapture, LogitsCapture
from schemas.errors import CorruptCacheError
from support.golden import GOLDEN
from support.synthetic import logits_sample, random_shards, token_sample, write_cache
from support.worded import worded_pair
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.draws.record import DrawsSample
from tools.cache_tools_cli import main
from tools.looking.figures import exact_column, read_draws_of, row_figures, select_rows
from tools.looking.stats import source_file, stats

FLOATS = CodecConfig(logprobs="float32", scalar_steps_per_nat=65536)
VOCABULARY = 300


def entropy_of(logits_PV: np.ndarray) -> np.ndarray:
    p_PV = np.exp(logits_PV - logits_PV.max(axis=1, keepdims=True))
    p_PV /= p_PV.sum(axis=1, keepdims=True)
    return -(p_PV * np.log(p_PV)).sum(axis=1)


@pytest.mark.parametrize("k", [1, 8, VOCABULARY])
def test_row_figures_bound_the_entropy(k: int) -> None:
    rng = np.random.default_rng(k)
    sample = token_sample(rng.integers(0, VOCABULARY, 40).tolist())
    logits_SV = rng.normal(0, 2.5, (40, VOCABULARY))
    rows = logits_sample(logits_SV, sample.input_ids, LogitsCapture(k=k), sample.loss_mask)
    figures = row_figures(rows, np.ones(39, bool), VOCABULARY)
    exact_P = entropy_of(logits_SV[:39])
    assert (figures.entropy <= exact_P + 1e-6).all()
    assert (exact_P <= figures.at_most + 1e-6).all()
    if k == VOCABULARY:
        np.testing.assert_allclose(figures.entropy, exact_P, atol=1e-5)
        np.testing.assert_allclose(figures.at_most, exact_P, atol=1e-5)
    else:
        assert (figures.entropy < exact_P).all()
    p_PV = np.exp(logits_SV) / np.exp(logits_SV).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(figures.top1, p_PV.max(axis=1)[:39], rtol=1e-5)
    np.testing.assert_allclose(figures.coverage, np.sort(p_PV, axis=1)[:39, ::-1][:, :k].sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(np.exp(-figures.surprise), p_PV[np.arange(39), sample.input_ids[1:]], rtol=1e-4)
    fewer = row_figures(rows, np.ones(39, bool), VOCABULARY, entries=max(1, k // 2))
    assert (fewer.entropy <= figures.entropy + 1e-9).all()
    np.testing.assert_array_equal(fewer.at_most, figures.at_most)


def write_worded(folder: Path) -> str:
    shards = [
        [
            worded_pair(["- ", "a", " b", "\n", "- ", "c"], layer="prose", source_id="notes.md#1", seed=1),
            worded_pair(["def", " f", "(x)", ":", " pass"], layer="code", source_id="a#b.py#1.2", seed=2),
        ],
        [worded_pair(["def", " g", "(x)", ":", " pass", "\n"], layer="code", source_id="a#b.py#1.3", seed=3)],
    ]
    write_cache(str(folder), shards, codec=FLOATS)
    return str(folder)


def test_groups_and_sums(tmp_path: Path) -> None:
    url = write_worded(tmp_path)
    found = stats(url).summary()
    assert found["samples_in_cache"] == 3
    assert not found["entropy_is_exact"]
    assert {name: (g["samples"], g["rows"]) for name, g in found["layers"].items()} == {"code": (2, 9), "prose": (1, 5)}
    assert list(found["sources"]) == ["a#b.py", "notes.md"]
    assert found["layers"]["code"] == found["sources"]["a#b.py"]
    assert found["layers"]["prose"]["decorative_share"] == pytest.approx(1 / 5)  # the first is no response token
    assert found["layers"]["code"]["decorative_share"] == 0
    assert found["overall"]["decorative_share"] == pytest.approx(1 / 14)
    assert found["overall"]["response_length"]["mean"] == pytest.approx(14 / 3)
    reader = CacheReader(url)
    rows = [reader.read_logits(position) for position in range(3)]
    surprise = np.concatenate([-sample.next_logprob for sample in rows]).mean(dtype=np.float64)
    assert found["overall"]["perplexity"] == pytest.approx(math.exp(surprise), rel=1e-6)
    entropy = np.concatenate(
        [row_figures(sample, np.ones(len(sample.positions), bool), 300).entropy for sample in rows]
    )
    assert found["overall"]["entropy"]["mean"] == pytest.approx(entropy.mean())
    assert found["overall"]["entropy"]["p50"] == pytest.approx(np.median(entropy), abs=0.3)
    assert found["overall"]["effective_support"]["mean"] == pytest.approx(np.exp(entropy).mean())


def test_rows_outside_of_the_loss_mask_do_not_count(tmp_path: Path) -> None:
    capture = LogitsCapture(k=8, positions="all")
    shards = random_shards([[30, 30]], capture=capture, counting=0.5)
    write_cache(str(tmp_path), shards, capture=capture)
    counting = sum(int(tokens.loss_mask.sum()) for shard in shards for tokens, _ in shard)
    assert stats(str(tmp_path)).summary()["overall"]["rows"] == counting < 58


def test_a_part_is_the_same_every_time_and_spread(tmp_path: Path) -> None:
    write_cache(str(tmp_path), random_shards([[10] * 10] * 5))
    told: list[tuple[int, int]] = []
    first = stats(str(tmp_path), 12, lambda *now: told.append(now)).summary()
    assert first == stats(str(tmp_path), 12).summary()
    assert first["overall"]["samples"] == 12
    assert told[-1] == (12, 12)


def test_the_exact_entropy_is_taken_where_it_is_stored() -> None:
    found = stats(str(GOLDEN))
    assert found.entropy_is_exact
    reader = CacheReader(str(GOLDEN), ("tokens", "logits", "draws"))
    total, rows, bound = 0.0, 0, 0.0
    for position in range(len(reader)):
        counting = reader.read_tokens(position).loss_mask[reader.read_draws(position).positions]
        total += float(reader.read_draws(position).entropy[counting, 0].sum(dtype=np.float64))
        bound += float(row_figures(reader.read_logits(position), counting, 384).entropy.sum())
        rows += int(counting.sum())
    summary = found.summary()["overall"]
    assert summary["rows"] == rows
    assert summary["entropy"]["mean"] == pytest.approx(total / rows) == pytest.approx(summary["entropy_at_most"])
    assert bound < total


def test_which_temperature_of_the_draws_is_exact(tmp_path: Path) -> None:
    manifest = write_cache(str(tmp_path), random_shards([[5]]))
    for temperatures, column in (([3.0, 1.0], 1), ([3.0], None)):
        capture = CaptureConfig(logits=LogitsCapture(k=8), draws=DrawsCapture(n=4, temperatures=temperatures))
        assert exact_column(manifest.model_copy(update={"capture": capture})) == column
    assert exact_column(manifest) is None


def test_draws_of_other_rows_are_refused() -> None:
    reader = CacheReader(str(GOLDEN), ("tokens", "logits", "draws"))
    logits = reader.read_logits(0)
    assert isinstance(read_draws_of(reader, 0, logits), DrawsSample)
    with pytest.raises(CorruptCacheError, match=r"draws\.tar: sample .*not those of the logits"):
        read_draws_of(reader, 0, select_rows(logits, logits.positions > 0))


@pytest.mark.parametrize(
    ("source_id", "file"),
    [("a/b.py#1", "a/b.py"), ("a#b.py#12.3", "a#b.py"), ("plain", "plain"), ("c#", "c#"), ("c#sharp", "c#sharp")],
)
def test_source_files(source_id: str, file: str) -> None:
    assert source_file(source_id) == file


def test_sources_beyond_those_shown_are_counted(tmp_path: Path) -> None:
    pairs = [worded_pair(["a", "b", "c"], source_id=f"f{i:02d}#1", layer=f"l{i}", seed=i) for i in range(25)]
    write_cache(str(tmp_path), [pairs])
    found = stats(str(tmp_path)).summary()
    assert len(found["sources"]) == 20
    assert found["sources_not_shown"] == 5


def test_from_a_store(s3_url: str, tmp_path: Path) -> None:
    shards = random_shards([[20, 30], [25]])
    write_cache(s3_url, shards)
    write_cache(str(tmp_path), shards)
    assert stats(s3_url).summary() == stats(str(tmp_path)).summary()


def shown(*arguments: str) -> Any:
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "220"})


def test_the_command(tmp_path: Path) -> None:
    url = write_worded(tmp_path)
    table = shown("stats", url)
    assert table.exit_code == 0, table.output
    assert "layer prose" in table.output
    assert "source a#b.py" in table.output
    assert "3 of 3 samples; entropy in nats at temperature 1, a lower bound" in table.output
    overall = stats(url).summary()["overall"]
    (line,) = [line for line in table.output.splitlines() if line.startswith("│ all ")]
    assert f" ≥ {overall['entropy']['mean']:.3f} │ ≥ {overall['entropy']['p50']:.3f} │" in line, "bounds are said to be"
    assert f"≥ {overall['effective_support']['mean']:,.1f} │" in line
    exact = shown("stats", str(GOLDEN)).output
    assert "at temperature 1, exact" in exact
    assert "≥" not in exact
    as_json = shown("stats", url, "--json", "--samples", "2")
    assert json.loads(as_json.stdout)["overall"]["samples"] == 2
    assert json.loads(shown("stats", url, "--json", "--all", "--samples", "2").stdout)["overall"]["samples"] == 3


def test_names_do_not_command_the_terminal(tmp_path: Path) -> None:
    pair = worded_pair(["a", "b", "c"], layer="red\x1b[31m", source_id="[bold]x[/bold]\b#1")
    write_cache(str(tmp_path), [[pair]])
    output = shown("stats", str(tmp_path)).output
    assert "\x1b[31m" not in output
    assert r"red\x1b[31m" in output
    assert r"[bold]x[/bold]\x08" in output
    assert "\b" not in output


def test_a_cache_without_samples(tmp_path: Path) -> None:
    result = shown("stats", str(tmp_path))
    assert result.exit_code == 2
    assert "not found, so this is not a cache" in result.stderr


def test_a_text_that_the_teacher_finds_impossible(tmp_path: Path) -> None:
    """A perplexity beyond the range of floats."""
    sample, logits = worded_pair(["a", "b", "c"])
    logits = replace(logits, next_logprob=np.full(2, -5000, np.float32))
    write_cache(str(tmp_path), [[(sample, logits)]])
    assert math.isfinite(stats(str(tmp_path)).summary()["overall"]["perplexity"])
