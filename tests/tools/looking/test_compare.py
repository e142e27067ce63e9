"""Comparison of two teachers on the same text."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from schemas.cache_config import CodecConfig, LogitsCapture
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import Manifest
from schemas.teachers_compared import TeachersCompared
from support.golden import GOLDEN
from support.synthetic import Pair, logits_sample, random_shards, write_cache
from support.worded import worded_sample
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import MANIFEST, Storage
from tools.cache_tools_cli import main
from tools.looking.compare import PairedMean, compare

FLOATS = CodecConfig(logprobs="float32", scalar_steps_per_nat=65536)
VOCABULARY = 40
TEXTS = (["- ", "a", " b", "\n", "- ", "c"], ["x", " y", "\n", "- ", "z", "!"], ["p", "q", "r", "s"])
IDS = ([1, 2, 3, 4, 1, 5], [6, 7, 4, 1, 8, 9], [10, 11, 12, 13])


def teacher(sharpness: float, k: int = VOCABULARY) -> tuple[list[Pair], list[np.ndarray]]:
    """Samples of three texts from a teacher with the same logits times ``sharpness``; and those logits."""
    pairs, logits = [], []
    for number, (text, ids) in enumerate(zip(TEXTS, IDS, strict=True)):
        sample = worded_sample(text, ids, layer="prose" if number < 2 else "code")
        logits_SV = sharpness * np.random.default_rng(number).normal(0, 1, (len(text), VOCABULARY))
        pairs.append((sample, logits_sample(logits_SV, sample.input_ids, LogitsCapture(k=k), sample.loss_mask)))
        logits.append(logits_SV)
    return pairs, logits


def write(folder: Path, pairs: list[Pair], k: int = VOCABULARY) -> str:
    write_cache(str(folder), [pairs[:1], pairs[1:]], VOCABULARY, LogitsCapture(k=k), FLOATS)
    return str(folder)


def change(url: str, **changes: Any) -> Manifest:
    storage = Storage(url)
    manifest = read_manifest(storage).model_copy(update=changes)
    storage.write(MANIFEST, manifest.to_json().encode())
    return manifest


def test_against_the_whole_vocabulary(tmp_path: Path) -> None:
    (a, logits_a), (b, logits_b) = teacher(1.0), teacher(2.5)
    found = compare(write(tmp_path / "a", a), write(tmp_path / "b", b[::-1])).summary()
    overall = found["overall"]
    p_PV, q_PV = (np.concatenate([_softmax(rows[:-1]) for rows in logits]) for logits in (logits_a, logits_b))
    entropy_a, entropy_b = _entropy(p_PV), _entropy(q_PV)
    following = np.concatenate([ids[1:] for ids in IDS])
    assert found["common_samples"] == 3
    assert (overall["samples"], overall["rows"]) == (3, 13)
    assert overall["a"]["entropy"]["mean"] == pytest.approx(entropy_a.mean(), rel=1e-4)
    assert overall["b"]["entropy"]["mean"] == pytest.approx(entropy_b.mean(), rel=1e-4)
    assert overall["entropy_b_minus_a"]["mean"] == pytest.approx((entropy_b - entropy_a).mean(), rel=1e-3)
    assert overall["entropy_b_minus_a"]["mean"] < 0
    assert overall["kl_a_b"]["mean"] == pytest.approx((p_PV * np.log(p_PV / q_PV)).sum(axis=1).mean(), rel=1e-3)
    assert overall["kl_b_a"]["mean"] == pytest.approx((q_PV * np.log(q_PV / p_PV)).sum(axis=1).mean(), rel=1e-3)
    assert overall["top1_agreement"] == 1
    surprise = -np.log(p_PV[np.arange(13), following]).mean()
    assert overall["a"]["perplexity"] == pytest.approx(math.exp(surprise), rel=1e-3)
    assert overall["a"]["decorative_mass"] == pytest.approx(
        p_PV[:, 1].mean(), rel=1e-3
    )  # id 1 is "- ", always a bullet
    assert overall["b"]["decorative_mass"] == pytest.approx(q_PV[:, 1].mean(), rel=1e-3)
    assert overall["decorative_share"] == pytest.approx(2 / 13)
    assert overall["response_length"]["mean"] == pytest.approx(13 / 3)
    assert {name: pair["rows"] for name, pair in found["layers"].items()} == {"code": 3, "prose": 10}


def _softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def _entropy(p_PV: np.ndarray) -> np.ndarray:
    return -(p_PV * np.log(p_PV)).sum(axis=1)


def test_a_teacher_and_itself(tmp_path: Path) -> None:
    url = write(tmp_path / "a", teacher(1.5, 8)[0], 8)
    overall = compare(url, url).summary()["overall"]
    assert overall["top1_agreement"] == 1
    assert overall["kl_a_b"]["mean"] == overall["kl_b_a"]["mean"] == 0
    assert overall["entropy_b_minus_a"] == {"mean": 0, "standard_error": 0}
    assert overall["a"] == overall["b"]


def test_a_cache_of_more_entries_does_not_appear_less_certain(tmp_path: Path) -> None:
    """One teacher, stored with 4 and with all entries: both bounds use 4 entries."""
    shallow, deep = write(tmp_path / "a", teacher(1.0, 4)[0], 4), write(tmp_path / "b", teacher(1.0)[0])
    overall = compare(shallow, deep).summary()["overall"]
    assert overall["a"]["entropy"]["mean"] == pytest.approx(overall["b"]["entropy"]["mean"], rel=1e-5)
    assert overall["a"]["coverage"] < overall["b"]["coverage"]
    assert overall["a"]["entropy_at_most"] > overall["b"]["entropy_at_most"]
    assert overall["kl_a_b"]["mean"] == pytest.approx(0, abs=1e-5)


def test_rows_that_only_one_stores_are_left_out(tmp_path: Path) -> None:
    (a, _), (b, _) = teacher(1.0), teacher(2.0)
    tokens, rows = b[0]
    kept = {name: value[1:] for name, value in vars(rows).items() if name != "num_tokens"}
    b[0] = (tokens, replace(rows, **kept))
    assert compare(write(tmp_path / "a", a), write(tmp_path / "b", b)).summary()["overall"]["rows"] == 12


def test_a_part_of_the_samples(tmp_path: Path) -> None:
    url = write(tmp_path / "a", teacher(1.0)[0])
    told: list[tuple[int, int]] = []
    found = compare(url, url, 2, lambda *now: told.append(now)).summary()
    assert found["overall"]["samples"] == 2
    assert found["common_samples"] == 3
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    pairs = teacher(1.0)[0]
    a, b = write(tmp_path / "a", pairs), write(tmp_path / "b", pairs)
    tokenizer = read_manifest(Storage(b)).tokenizer
    change(b, tokenizer=tokenizer.model_copy(update={"fingerprint": "d" * 64}))
    with pytest.raises(UserError, match=f"different tokenizers, with fingerprints {'b' * 64} and {'d' * 64}"):
        compare(a, b)


def test_nothing_in_common(tmp_path: Path) -> None:
    write_cache(str(tmp_path / "a"), random_shards([[5]], seed=1))
    write_cache(str(tmp_path / "b"), random_shards([[5]], seed=2))
    with pytest.raises(UserError, match="no sample key in common"):
        compare(str(tmp_path / "a"), str(tmp_path / "b"))


def test_one_key_of_two_texts_is_damage(tmp_path: Path) -> None:
    pairs, others = teacher(1.0)[0], teacher(1.0)[0]
    tokens, rows = others[2]
    others[2] = (replace(tokens, input_ids=tokens.input_ids + 1), rows)
    with pytest.raises(CorruptCacheError, match="its tokens differ from those in the first cache"):
        compare(write(tmp_path / "a", pairs), write(tmp_path / "b", others))


def test_exact_entropies_are_used_if_both_are(tmp_path: Path) -> None:
    assert compare(str(GOLDEN), str(GOLDEN)).summary()["entropy_is_exact"]
    assert not compare(*[write(tmp_path / "a", teacher(1.0)[0])] * 2).summary()["entropy_is_exact"]


def test_the_standard_error_is_that_of_a_ratio_over_samples() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.normal(rng.normal(), 1, n) for n in (5, 9, 30, 2)]
    mean = PairedMean()
    for sample in samples:
        mean.add(sample)
    everything = np.concatenate(samples)
    residuals = np.array([(sample - everything.mean()).sum() for sample in samples])
    expected = math.sqrt((residuals**2).sum() * 4 / 3) / len(everything)
    assert mean.summary() == pytest.approx({"mean": everything.mean(), "standard_error": expected})
    single = PairedMean()
    single.add(np.ones(3))
    assert single.summary() == {"mean": 1, "standard_error": None}


def test_the_command(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", teacher(1.0, 8)[0], 8), write(tmp_path / "b", teacher(2.5, 8)[0], 8)
    change(b, teacher=read_manifest(Storage(b)).teacher.model_copy(update={"name": "light\x1b[31m"}))
    result = CliRunner().invoke(main, ["compare", a, b], env={"COLUMNS": "150"})
    assert result.exit_code == 0, result.output
    for expected in ("B − A of the bounds", "KL(A ‖ B)", "100.00%", r"B: light\x1b[31m", "3 of 3 samples in both"):
        assert expected in result.output
    bound = compare(a, b).summary()["overall"]["a"]["entropy"]["mean"]
    assert f"≥ {bound:.4f}" in result.output
    exact = CliRunner().invoke(main, ["compare", str(GOLDEN), str(GOLDEN)]).output
    assert "B − A " in exact
    assert not [line for line in exact.splitlines() if "≥" in line and "KL(" not in line]
    as_json = CliRunner().invoke(main, ["compare", a, b, "--json", "--samples", "1"])
    assert json.loads(as_json.stdout)["overall"]["samples"] == 1
    assert json.loads(as_json.stdout)["b"]["teacher"] == "light\x1b[31m"
    on_a_page = TeachersCompared.model_validate_json(as_json.stdout)
    assert on_a_page.b.teacher == "light\x1b[31m"
    assert on_a_page.overall.samples == 1
