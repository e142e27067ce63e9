"""Samples scored anew: sound caches pass, and each fault is found and named. Teachers are tiny and random."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from click.testing import CliRunner

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from support.attention_models import write_special
from support.models import write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.engines import step
from teacher_cache.engines import transformers as engine
from teacher_cache.records import Captured, Request
from teacher_cache.signals.logits.capture import reduce_logits
from tools.cache_tools_cli import main
from tools.checking.rescore import rescore

SEEDS = [0, 1]
SHIFTED = ("hidden", "final", "attention")
CAPTURE = {"logits": {"k": 16, "temperatures": [1.0, 3.0]}, "draws": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rescore")
    for seed in SEEDS:
        write_random_teacher(folder / f"teacher-{seed}", seed=seed)
        write_text_corpus(folder / f"corpus-{seed}", documents=8, seed=seed)
    return folder


def cached(folder: Path, output: Path, seed: int = 0, capture: dict[str, Any] = CAPTURE, dtype: str = "float32") -> str:
    teacher = folder / f"teacher-{seed}"
    tree = cache_tree(teacher, folder / f"corpus-{seed}", output, tokens_per_shard=400, capture=capture)
    tree["teacher"]["dtype"] = dtype
    tree["engine"]["self_check"] = "off"  # which would find, before the run, what is to be found after it
    job.run(validate(CacheConfig, tree, "test"))
    return str(output)


def shifted(by: int) -> Any:
    """The engine gives at each row what belongs ``by`` rows later."""
    score = engine.TransformersEngine.score

    def wrong(self: engine.TransformersEngine, requests: list[Request]) -> list[Captured]:
        moved = [
            request._replace(logits_positions=(request.logits_positions + by).clip(0, len(request.input_ids) - 2))
            for request in requests
        ]
        return [
            Captured(_at(found.logits, request.logits_positions), found.side)
            for found, request in zip(score(self, moved), requests, strict=True)
        ]

    return mock.patch.object(engine.TransformersEngine, "score", wrong)


def _at(sample: Any, positions: Any) -> Any:
    return type(sample)(**(vars(sample) | {"positions": positions}))


def tempered(temperature: float) -> Any:
    """The engine divides logits before the softmax."""
    return mock.patch.object(
        step, "reduce_logits", lambda logits, next_ids, k, ts: reduce_logits(logits / temperature, next_ids, k, ts)
    )


def other_partitions(temperature: float) -> Any:
    """The engine gives log-partitions of this temperature instead of 3."""
    return mock.patch.object(
        step,
        "reduce_logits",
        lambda logits, next_ids, k, ts: reduce_logits(logits, next_ids, k, [t if t == 1 else temperature for t in ts]),
    )


SOUND: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "float32": (CAPTURE, "float32", None),
    "bfloat16 cache, float32 teacher": (CAPTURE, "bfloat16", "float32"),
    "bfloat16": (CAPTURE, "bfloat16", None),
    "one entry": ({"logits": {"k": 1, "temperatures": [1.0, 2.0, 0.7]}}, "float32", None),
    "nucleus": ({"logits": {"policy": "nucleus", "k": 24, "mass": 0.9}}, "float32", None),
    "other signals": (
        CAPTURE
        | {"hidden": {"layers": [1, 2], "dtype": "int4"}, "final": {}, "draws": {"n": 5}, "attention": {"heads": 1}},
        "float32",
        None,
    ),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", SOUND)
def test_no_false_alarm(folder: Path, tmp_path: Path, kind: str, seed: int) -> None:
    capture, dtype, again = SOUND[kind]
    url = cached(folder, tmp_path / "cache", seed, capture, dtype)
    found = rescore(url, str(folder / f"teacher-{seed}"), samples=8, seed=seed, dtype=again)
    assert (found.problems, found.verdict, found.same_fingerprint) == ([], "this teacher", True), found
    assert found.samples == 8
    errors = found.figures["log-probabilities, |Δ| in nat"]
    assert errors["max"] <= (1 / 32 + 1e-3 if dtype == "float32" else 1.5)
    assert found.figures["shares"]["same best token"] > (0.999 if dtype == "float32" else 0.9)
    if "attention" in capture:
        assert found.figures["attention rows, relative error"]["max"] < 0.01
    if "hidden" in capture:
        assert {"hidden states, layer 1, relative error", "final hidden state, relative error"} <= set(found.figures)


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "rows of the token before": (lambda: shifted(-1), "of one token before: rows are shifted"),
    "rows of the token after": (lambda: shifted(1), "of one token later: rows are shifted"),
    "logits divided by 1.5": (lambda: tempered(1.5), "divided by a temperature of about 1.5"),
    "logits divided by 0.8": (lambda: tempered(0.8), "divided by a temperature of about 0.8"),
    "logits divided by 3": (lambda: tempered(3), "divided by a temperature of about 3"),
    "log-partitions of 2": (lambda: other_partitions(2.0), "log-partition of temperature 3 is"),
}


@pytest.mark.parametrize(("seed", "dtype"), [(0, "float32"), (1, "bfloat16")])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_and_named(folder: Path, tmp_path: Path, fault: str, seed: int, dtype: str) -> None:
    make, wanted = FAULTS[fault]
    with make():
        url = cached(folder, tmp_path / "cache", seed, dtype=dtype)
    found = rescore(url, str(folder / f"teacher-{seed}"), samples=8, seed=seed, dtype="float32")
    assert found.same_fingerprint
    assert len(found.problems) == 1, found
    assert wanted in found.problems[0], found
    if "partitions" in fault:
        assert found.problems[0].endswith("it is that of about 2")


@pytest.mark.parametrize("k", [1, 16])
@pytest.mark.parametrize("seed", SEEDS)
def test_another_teacher(folder: Path, tmp_path: Path, seed: int, k: int) -> None:
    url = cached(folder, tmp_path / "cache", seed, {"logits": {"k": k}}, "bfloat16")
    found = rescore(url, str(folder / f"teacher-{1 - seed}"), samples=8)
    assert not found.same_fingerprint
    assert "another teacher" in found.verdict, found
    assert found.problems


def test_a_temperature_is_seen_with_one_entry_a_row(folder: Path, tmp_path: Path) -> None:
    with tempered(2):
        url = cached(folder, tmp_path / "cache", 0, {"logits": {"k": 1}})
    assert "temperature of about 2" in rescore(url, str(folder / "teacher-0"), samples=8).verdict


def side_of_the_row_before() -> Any:
    """The engine gives side signals at each row that belong to the row before."""
    score = engine.TransformersEngine.score

    def wrong(self: engine.TransformersEngine, requests: list[Request]) -> list[Captured]:
        moved = [
            request._replace(side_positions={name: (request.positions(name) - 1).clip(0) for name in SHIFTED})
            for request in requests
        ]
        return [
            Captured(found.logits, {name: _at(side, request.positions(name)) for name, side in found.side.items()})
            for found, request in zip(score(self, moved), requests, strict=True)
        ]

    return mock.patch.object(engine.TransformersEngine, "score", wrong)


def test_hidden_states_of_other_rows_are_found(folder: Path, tmp_path: Path) -> None:
    capture = CAPTURE | {"hidden": {"layers": [1], "positions": "all"}, "final": {"dtype": "bfloat16"}}
    with side_of_the_row_before(), pytest.raises(UserError):
        cached(folder, tmp_path / "refused", 0, capture)  # final hidden states are checked when they are written
    with side_of_the_row_before():
        url = cached(folder, tmp_path / "cache", 0, CAPTURE | {"hidden": {"layers": [1], "positions": "all"}})
    (problem,) = rescore(url, str(folder / "teacher-0"), samples=8).problems
    assert "hidden states, layer 1: off by" in problem
    assert "of one token before" in problem


def test_attention_rows_of_other_tokens_are_found(folder: Path, tmp_path: Path) -> None:
    with side_of_the_row_before():
        url = cached(
            folder, tmp_path / "cache", 0, CAPTURE | {"attention": {"heads": 2, "keys": 8, "positions": "all"}}
        )
    (problem,) = rescore(url, str(folder / "teacher-0"), samples=8).problems
    assert "attention rows: off by" in problem
    assert "of one token before" in problem


def test_some_samples_of_another_teacher(folder: Path, tmp_path: Path) -> None:
    """As when shards of two teachers are put together: the share is named, the rest does not hide it."""
    count = iter(range(100))
    score = engine.TransformersEngine.score

    def wrong(self: engine.TransformersEngine, requests: list[Request]) -> list[Captured]:
        if next(count) != 1:
            return score(self, requests)
        weight = self._model.lm_head.weight
        with torch.no_grad():
            kept = weight.clone()
            weight.copy_(kept.roll(1, dims=0))
            found = score(self, requests)
            weight.copy_(kept)
        return found

    with mock.patch.object(engine.TransformersEngine, "score", wrong):
        url = cached(folder, tmp_path / "cache", 0)
    (problem,) = rescore(url, str(folder / "teacher-0"), samples=100).problems
    share, _, total = problem.partition(" of ")
    assert 0 < int(share) < int(total.partition(" ")[0]) / 2
    assert "another teacher" in problem


def test_the_command(folder: Path, tmp_path: Path) -> None:
    url, run = cached(folder, tmp_path / "cache"), CliRunner().invoke
    sound = run(main, ["verify", url, "--teacher", str(folder / "teacher-0"), "--samples", "4"])
    assert sound.exit_code == 0, sound.output
    assert "this teacher" in sound.stdout
    wrong = run(main, ["verify", url, "--teacher", str(folder / "teacher-1"), "--samples", "4", "--json"])
    assert wrong.exit_code == 1
    report = json.loads(wrong.stdout)
    assert report["problems"] == []
    assert "another teacher" in report["rescored"]["problems"][0]
    assert run(main, ["verify", url, "--teacher", str(tmp_path / "nothing")]).exit_code == 2
    write_random_teacher(tmp_path / "wide", hidden_size=32, head_dim=16)
    shaped = run(main, ["verify", url, "--teacher", str(tmp_path / "wide")])
    assert shaped.exit_code == 1
    assert "2 layers of 32 channels; the cache's teacher has 384, 2 of 64" in shaped.stdout


@pytest.mark.parametrize("kind", ["soft cap, Gemma 2", "sinks, gpt-oss"])
def test_a_cache_whose_attention_lacked_a_feature_is_found(tmp_path: Path, kind: str) -> None:
    write_special(tmp_path / "teacher-0", kind)
    write_text_corpus(tmp_path / "corpus-0", documents=8)
    teacher = str(tmp_path / "teacher-0")
    assert rescore(cached(tmp_path, tmp_path / "right"), teacher, samples=8).problems == []
    forward = engine.TransformersEngine._score_batch

    def without_feature(self: Any, requests: list[Request]) -> Any:
        self._model.config._attn_implementation = "sdpa"
        return forward(self, requests)

    with mock.patch.object(engine.TransformersEngine, "_score_batch", without_feature):
        url = cached(tmp_path, tmp_path / "wrong")
    assert rescore(url, teacher, samples=8).problems
