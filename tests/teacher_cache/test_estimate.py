"""An estimate predicts what a run would write, and writes nothing."""

import json
import random
import re
from pathlib import Path

import pytest

from schemas.cache_config import CacheConfig
from schemas.load import load_config, validate
from support.commands import run, run_ok
from support.models import write_random_teacher, write_text_corpus
from support.workspace import cache_tree
from teacher_cache import estimate, job
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import BLOCK


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("estimate")
    teacher, corpus = write_random_teacher(folder / "teacher"), write_text_corpus(folder / "texts")
    states = {"dtype": "bfloat16"}
    capture = {"logits": {"k": 16}, "draws": {"n": 12}, "hidden": {"layers": [1], **states}, "final": states}
    return cache_tree(teacher, corpus, folder / "cache", capture=capture)


@pytest.fixture(scope="module")
def config(tree: dict) -> CacheConfig:
    return validate(CacheConfig, tree, "test")


def test_a_probe_of_every_sequence_gives_the_sizes_of_the_run(config: CacheConfig) -> None:
    survey = estimate.survey(config, 10**6)
    assert not Path(config.output.path).exists()
    found = estimate.probe(config, survey)
    assert not Path(config.output.path).exists()
    job.run(config)
    manifest = read_manifest(Storage(config.output.path))
    assert (survey.units, survey.counts) == (len(manifest.units), manifest.corpus.counts)
    for signal, size in manifest.totals.bytes.items():
        assert found.bytes_per_token[signal] * manifest.totals.tokens == pytest.approx(size), signal
        assert found.gigabytes[signal] == pytest.approx(found.bytes_per_token[signal] * manifest.totals.tokens / 1e9)
    assert found.hours == pytest.approx(manifest.totals.tokens / found.tokens_per_second / 3600)


@pytest.mark.parametrize("n", [8, 16])
def test_a_few_chats_give_the_sizes_of_all(tmp_path: Path, n: int) -> None:
    """Within 5 %, although the probed sequences differ in length and in their share of trained tokens."""
    rng = random.Random(0)

    def words(least: int) -> str:
        return " ".join(rng.choice(["def", "f1(x)", "return", "x", "user"]) for _ in range(rng.randint(least, 60)))

    chats = [[("user", words(2)), ("assistant", f"{words(2)} {number}")] for number in range(120)]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in chat]}) for chat in chats]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    capture = {"logits": {"k": 16}, "final": {}, "hidden": {"layers": [1]}, "draws": {"n": 12}}
    tree = cache_tree(write_random_teacher(tmp_path / "teacher"), tmp_path, tmp_path / "cache", capture=capture)
    tree["corpus"] = {"sources": [{"path": str(tmp_path / "chats.jsonl"), "format": "jsonl"}], "max_tokens": 400}
    config = validate(CacheConfig, tree, "test")
    found = estimate.probe(config, estimate.survey(config, n)).bytes_per_token
    assert found == pytest.approx(
        {signal: size for signal, size in job.run(config).bytes_per_token.items() if signal in found}, rel=0.05
    )


@pytest.mark.parametrize(
    ("setting", "signal"),
    [
        ("capture.logits.k=8", "logits"),
        ("codec.logprobs=float16", "logits"),
        ("capture.draws.n=6", "draws"),
        ("capture.hidden.dtype=int4", "hidden"),
        ("capture.final.dtype=int8", "final"),
    ],
)
def test_sizes_under_other_settings_equal_a_probe_under_them(
    tree: dict, tmp_path: Path, setting: str, signal: str
) -> None:
    path = tmp_path / "cache.json"
    path.write_text(json.dumps(tree))
    config, changed = (load_config(CacheConfig, str(path), overrides) for overrides in ((), (setting,)))
    estimated = estimate.probe(config, estimate.survey(config, 4))
    found = estimated.other_settings
    assert len(found) == 2 + 3 + 1 + 4 + 4
    probed = estimate.probe(changed, estimate.survey(changed, 4)).bytes_per_token
    assert found[setting] == pytest.approx(probed[signal], abs=1.01 * BLOCK / estimated.tokens), "within a block of tar"


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_probed_sequences_are_spread_over_the_corpus(config: CacheConfig, n: int) -> None:
    everything = estimate.survey(config, 10**6).samples
    some = estimate.survey(config, n).samples
    keys = [sample.key for sample in everything]
    places = [keys.index(sample.key) for sample in some]
    assert len(places) == n
    assert places == sorted(places)
    assert n == 1 or places[-1] >= len(keys) / 3


def test_the_number_of_units_is_that_of_the_plan(config: CacheConfig, tmp_path: Path) -> None:
    output = config.output.model_copy(update={"tokens_per_shard": 70, "path": str(tmp_path / "cache")})
    small = config.model_copy(update={"output": output})
    job.run(small)
    assert estimate.survey(small, 1).units == len(read_manifest(Storage(output.path)).units)


def test_the_command_writes_nothing_and_refuses_an_impossible_k(tree: dict, tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text(json.dumps(tree | {"output": {"path": str(tmp_path / "cache")}}))
    assert json.loads(run_ok("teacher-cache", "plan", path, "--dry-run", "--json"))["tokens"] > 0
    assert json.loads(run_ok("teacher-cache", "plan", path, "--probe", "2", "--json"))["probe"]["sequences"] == 2
    table = run_ok("teacher-cache", "plan", path, "--probe", "2")
    for name, unit in (
        ("bytes_per_token.final", "bytes/token"),
        ("gigabytes.final", "GB"),
        ("other_settings.capture.draws.n=6", "bytes/token of draws"),
        ("other_settings.codec.logprobs=float16", "bytes/token of logits"),
        ("hours", "h"),
    ):
        assert re.search(rf"probe\.{re.escape(name)} +│ [\d.e-]+ {unit} +│", table), name
    assert not (tmp_path / "cache").exists()
    refused = run("teacher-cache", "plan", path, "--dry-run", "--set", "capture.logits.k=385")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: capture.logits.k: 385")
