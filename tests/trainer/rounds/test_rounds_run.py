"""Rounds from beginning to end, through the command: parts forked, or as installed."""

import json
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from support.amount import amount
from support.commands import Forked, kill_group, outputs
from support.forked_parts import fork_parts
from support.small_rounds import write_rounds, write_small_rounds
from teacher_cache.generated.generated_place import read_generated
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.teacher import model_fingerprint

finished = partial(outputs, timeout=240)
BEGUN = (
    "round-001/replies/shard-*.json",
    "round-001/cache/manifest.json",
    "round-001/train/checkpoint-1",
    "round-002/replies/generated.json",
    "round-002/cache/shard-*.json",
    "round-002/train/checkpoint-1",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_rounds(tmp_path_factory.mktemp("rounds"))


def start(config: Path, *options: str) -> Forked:
    return Forked("train-student", "rounds", config, "--json", *options, before=fork_parts)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Rounds that nothing interrupts, and that keep everything."""
    output = folder / "whole"
    stdout, stderr = finished(start(write_rounds(folder, output, keep="caches")))
    (output / "printed.json").write_text(stdout)
    (output / "log").write_text(stderr)
    return output


def kept(output: Path) -> dict[str, bytes]:
    """What two runs of the same rounds must share: records, replies, caches, final weights."""
    paths = [path for path in sorted(output.glob("round-*/**/*")) if path.is_file()]
    wanted = [path for path in paths if path.parent.name in ("replies", "cache", "tables") or path.name == "round.json"]
    wanted += [path for path in paths if path.name == "model.safetensors"]
    return {str(path.relative_to(output)): path.read_bytes() for path in wanted if not path.name.startswith(".")}


def test_each_round_begins_with_the_student_of_the_one_before(whole: Path, folder: Path) -> None:
    printed = json.loads((whole / "printed.json").read_text())
    assert printed["complete"]
    assert printed["student"] == str(whole / "round-002/train/final")
    first, second = (json.loads((whole / f"round-00{n}/round.json").read_text()) for n in (1, 2))
    assert printed["rounds"] == [first, second]
    students = folder / "student", whole / "round-001/train/final"
    assert [each["student"] for each in (first, second)] == [model_fingerprint(str(each), "x") for each in students]
    assert first["student"] != second["student"]
    assert (first["steps"], second["steps"]) == (3, 3)
    assert (first["divergence"], second["divergence"]) == ("reverse", "reverse")
    generated = [read_generated(Storage(str(whole / f"round-00{n}/replies"))) for n in (1, 2)]
    assert [each.generator.name for each in generated] == ["student", "student, round 1"]
    assert [each.seed for each in generated] == [0, 1]


def test_only_accepted_replies_are_scored(whole: Path) -> None:
    for number in (1, 2):
        record = json.loads((whole / f"round-00{number}/round.json").read_text())
        assert 0 < record["accepted"] < record["replies"] == 24
        assert record["accepted"] + sum(record["rejected"].values()) == record["replies"]
        cache = CacheReader(str(whole / f"round-00{number}/cache"), ("tokens",))
        counts = cache.manifest.corpus.counts
        assert counts.rejected == sum(record["rejected"].values())
        assert len(cache) == record["cached_samples"] == record["accepted"] - counts.duplicates


def test_the_cost_is_said_before_the_first_part(whole: Path) -> None:
    lines = (whole / "log").read_text().splitlines()
    cost = next(
        i for i, line in enumerate(lines) if "each of 2 rounds: 8 prompts, 24 replies, at most 960 tokens" in line
    )
    assert cost < next(i for i, line in enumerate(lines) if "teacher-cache generate" in line)


def test_what_complete_rounds_need_no_more_is_gone(whole: Path) -> None:
    assert not list(whole.glob("round-*/train/checkpoint-*"))
    assert len(list(whole.glob("round-*/cache/manifest.json"))) == 2


def until(path: Path, pattern: str, process: Forked) -> None:
    deadline = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.005)


def test_killed_rounds_end_with_the_same_bytes(whole: Path, folder: Path) -> None:
    """SIGKILLs of the process of the rounds soon after a part began to write: the part dies with it."""
    output = folder / "killed"
    config, rng = write_rounds(folder, output, keep="caches"), random.Random(1)
    for begun in BEGUN if amount(0, full=1) else [BEGUN[0], BEGUN[-1]]:
        process = start(config)
        until(output, begun, process)
        time.sleep(rng.uniform(0, 0.1))
        assert process.poll() is None
        kill_group(process)
    finished(start(config))
    assert kept(output) == kept(whole)


def test_sigterm_ends_the_part_and_the_same_command_continues(whole: Path, folder: Path) -> None:
    """And it does so with more rounds than before."""
    output = folder / "stopped"
    process = start(write_rounds(folder, output, keep="none", rounds=1))
    until(output, "round-001/train/checkpoint-1", process)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = finished(process, 128 + signal.SIGTERM)
    assert "a checkpoint is saved" in stderr, "the part was told"
    assert "stopped after 0 rounds; the same command continues" in stderr
    assert not json.loads(stdout)["complete"]
    assert not (output / "round-001/round.json").exists()
    finished(start(write_rounds(folder, output, keep="none", rounds=2)))
    assert not list(output.glob("round-*/cache"))
    assert not list(output.glob("round-*/replies"))
    same = {name: data for name, data in kept(whole).items() if "/cache/" not in name and "/replies/" not in name}
    assert kept(output) == same


def test_rounds_with_too_few_accepted_replies_stop_before_the_teacher(folder: Path) -> None:
    output = folder / "few"
    _, stderr = finished(start(write_rounds(folder, output, least_accepted=0.99)), 2)
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: round 1: ")
    assert " of 24 replies are accepted (" in last
    assert "least_accepted wants 0.99 of them; " in last
    assert not (output / "round-001/cache").exists()


def test_an_error_of_a_part_is_the_rounds_error(folder: Path) -> None:
    config = write_rounds(
        folder, folder / "bad", generate={"sampling": {"stop": ["not one token"], "max_new_tokens": 9}}
    )
    _, stderr = finished(start(config), 2)
    first, last = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "sampling.stop: " in first
    assert last.startswith("error: the prompts: teacher-cache ended with exit status 2; its own message says why")
    assert not (folder / "bad/rounds.json").exists()


def test_a_dry_run_says_what_a_round_costs_and_writes_nothing(folder: Path) -> None:
    """The prompts are counted by the installed command."""
    output = folder / "dry"
    process = Forked("train-student", "rounds", write_rounds(folder, output), "--dry-run", "--json")
    stdout, _ = finished(process)
    cost = json.loads(stdout)
    assert (cost["prompts"], cost["replies"], cost["tokens to generate at most"]) == (8, 24, 24 * 40)
    assert cost["tokens to score at most"] > 24 * 40
    assert cost["steps"] == [3, 3]
    assert all(size > 0 for size in cost["disk at most"].values())
    assert not output.exists()
