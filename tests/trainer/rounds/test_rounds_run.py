"""Rounds from beginning to end, through the command: parts forked, or as installed."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from support.commands import Forked, kill_group, run_installed
from support.forked_parts import fork_parts
from support.small_rounds import write_rounds, write_small_rounds
from teacher_cache.generated.generated_place import read_generated
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.teacher import model_fingerprint

KILLS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_rounds(tmp_path_factory.mktemp("rounds"))


def start(config: Path, *options: str) -> Forked:
    return Forked("train-student", "rounds", config, "--json", *options, before=fork_parts)


def finished(process: Forked, status: int = 0) -> tuple[str, str]:
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == status, stderr
    return stdout, stderr


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Rounds that nothing interrupts, and that keep everything."""
    output = folder / "whole"
    started = time.monotonic()
    stdout, stderr = finished(start(write_rounds(folder, output, keep="caches")))
    (output / "seconds").write_text(str(time.monotonic() - started))
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


def test_killed_rounds_end_with_the_same_bytes(whole: Path, folder: Path) -> None:
    """SIGKILLs of the process of the rounds at random instants: the part under way dies with it."""
    output = folder / "killed"
    config = write_rounds(folder, output, keep="caches")
    seconds, rng = float((whole / "seconds").read_text()), random.Random(1)
    for _ in range(KILLS):
        process = start(config)
        time.sleep(rng.uniform(0.2, 0.7) * seconds)
        assert process.poll() is None
        kill_group(process)
    finished(start(config))
    assert kept(output) == kept(whole)


def test_sigterm_ends_the_part_and_the_same_command_continues(whole: Path, folder: Path) -> None:
    output = folder / "stopped"
    config = write_rounds(folder, output, keep="none")
    process = start(config)
    deadline = time.monotonic() + 120
    while not (output / "round-001/train/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = finished(process, 128 + signal.SIGTERM)
    assert "stopped after " in stderr
    assert "the same command continues" in stderr
    assert not json.loads(stdout)["complete"]
    assert not (output / "round-002").exists()
    finished(start(config))
    assert not list(output.glob("round-*/cache"))
    assert not list(output.glob("round-*/replies"))
    same = {name: data for name, data in kept(whole).items() if "/cache/" not in name and "/replies/" not in name}
    assert kept(output) == same


def test_more_rounds_continue_and_only_the_newest_cache_stays(folder: Path) -> None:
    output = folder / "more"
    finished(start(write_rounds(folder, output, rounds=1)))
    assert (output / "round-001/cache/manifest.json").exists()
    stdout, _ = finished(start(write_rounds(folder, output, rounds=2, divergence="forward")))
    assert [each["number"] for each in json.loads(stdout)["rounds"]] == [1, 2]
    assert not (output / "round-001/cache").exists()
    assert (output / "round-002/cache/manifest.json").exists()


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


def test_the_installed_commands_are_found(folder: Path) -> None:
    """A dry run, as users start it: it counts the prompts and writes nothing."""
    output = folder / "dry"
    done = run_installed("train-student", "rounds", write_rounds(folder, output), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    cost = json.loads(done.stdout)
    assert (cost["prompts"], cost["replies"], cost["tokens to generate at most"]) == (8, 24, 24 * 40)
    assert cost["tokens to score at most"] > 24 * 40
    assert cost["steps"] == [3, 3]
    assert all(size > 0 for size in cost["disk at most"].values())
    assert not output.exists()
