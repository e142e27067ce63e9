"""Bad input gives one line that names file, key and value, and a non-zero exit; what was committed stays readable."""

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from support.commands import command_line, environment, run, run_installed, run_ok
from support.models import VOCAB_SIZE, write_random_teacher, write_text_corpus
from support.workspace import Workspace
from teacher_cache.shards.reader import CacheReader


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    """A workspace and the cache it makes; tests change copies of the cache only."""
    folder = tmp_path_factory.mktemp("made")
    workspace = Workspace(folder, write_random_teacher(folder / "teacher"), write_text_corpus(folder / "corpus"))
    cache = folder / "cache"
    run_ok("teacher-cache", "run", workspace.cache_config(cache))
    return workspace, cache


@pytest.fixture
def copy(made: tuple[Workspace, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "cache"))


def refused(*wanted: str, done: subprocess.CompletedProcess[str], status: int = 2) -> None:
    """The command failed with one ``error:`` line that has all of ``wanted`` in it, and no traceback."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    missing = [text for text in wanted if text not in errors[0]]
    assert not missing, f"{missing} not in: {errors[0]}"


def readable_samples(cache: Path) -> int:
    """Decode every committed sample; returns how many there are."""
    reader = CacheReader(str(cache))
    for position in range(len(reader)):
        reader.read_tokens(position)
        reader.read_logits(position)
    return len(reader)


SETTINGS = [
    ("teacher.pth=x", ["cache.yaml", "teacher.pth", "unknown key", "'x'"]),
    ("capture.logits.k=many", ["cache.yaml", "capture.logits.k", "valid integer", "'many'"]),
    ("capture.logits.k=0", ["cache.yaml", "capture.logits.k", "greater than or equal to 1", "got 0"]),
    ("capture.logits.temperatures=[3.0]", ["cache.yaml", "capture.logits", "must contain 1.0"]),
    ("engine.kind=sglang", ["cache.yaml", "engine.kind", "'vllm' or 'transformers'", "'sglang'"]),
    ("corpus.sources=[]", ["cache.yaml", "corpus.sources", "at least 1 item"]),
    ("output", ["--set output", "dotted.key=value"]),
    ("output.path=nosuch://bucket/cache", ["nosuch://bucket/cache", "cannot be opened"]),
    ("teacher.path=/nowhere/teacher", ["teacher.path", "/nowhere/teacher", "no such folder"]),
    (f"capture.logits.k={VOCAB_SIZE + 1}", ["capture.logits.k", str(VOCAB_SIZE + 1), str(VOCAB_SIZE)]),
    ("corpus.sources.0.path=/nowhere/corpus", ["corpus.sources.0", "/nowhere/corpus"]),
    ("corpus.min_tokens=1000", ["corpus is empty", "too short"]),
]


@pytest.mark.parametrize(("setting", "wanted"), SETTINGS, ids=[setting for setting, _ in SETTINGS])
def test_settings_of_a_caching_run(
    made: tuple[Workspace, Path], tmp_path: Path, setting: str, wanted: list[str]
) -> None:
    config = made[0].cache_config(tmp_path / "new")
    refused(*wanted, done=run("teacher-cache", "run", config, "--set", setting))
    assert not list(tmp_path.rglob("*.tar")), "nothing is half-written"


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    refused("missing.yaml", "cannot read", done=run("teacher-cache", "run", tmp_path / "missing.yaml"))
    (tmp_path / "broken.yaml").write_text("teacher: [")
    refused("broken.yaml", "not valid YAML", done=run("teacher-cache", "run", tmp_path / "broken.yaml"))
    (tmp_path / "partial.yaml").write_text(yaml.safe_dump({"teacher": {"path": "x"}, "output": {"path": "y"}}))
    refused("partial.yaml", "corpus", "required", done=run("teacher-cache", "run", tmp_path / "partial.yaml"))


def test_a_broken_line_of_the_corpus_is_named(made: tuple[Workspace, Path], tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "def f(x): return x"}\n{"text": "unfinished\n')
    source = {"path": str(tmp_path / "data.jsonl"), "format": "jsonl"}
    config = made[0].cache_config(tmp_path / "new", corpus={"sources": [source], "max_tokens": 48})
    refused("data.jsonl", ":2", done=run("teacher-cache", "run", config))


def test_a_cache_of_another_teacher_is_left_alone(made: tuple[Workspace, Path], copy: Path, tmp_path: Path) -> None:
    other = write_random_teacher(tmp_path / "teacher", seed=1)
    config = made[0].cache_config(copy)
    done = run("teacher-cache", "run", config, "--set", f"teacher.path={other}")
    refused("manifest.json", "teacher.fingerprint", done=done)
    assert readable_samples(copy) == readable_samples(made[1])


def test_other_settings_for_a_cache_that_is_there(made: tuple[Workspace, Path], copy: Path) -> None:
    done = run("teacher-cache", "run", made[0].cache_config(copy), "--set", "capture.logits.k=8")
    refused("manifest.json", "capture.logits.k: 16 in the cache, 8 now", done=done)


def test_a_full_disk_keeps_what_was_committed(made: tuple[Workspace, Path], tmp_path: Path) -> None:
    """On a small file system the plan fits, and only some of the shards do; with more space the run continues."""
    disk = tmp_path / "disk"
    disk.mkdir()
    pages = {path.name: -(-path.stat().st_size // 4096) for path in made[1].rglob("*") if path.is_file()}
    shards = sum(n for name, n in pages.items() if name.endswith((".logits.tar", ".json")))
    size = 4096 * (sum(pages.values()) - shards // 2)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        config = made[0].cache_config(disk / "cache")
        refused("shard-", "cannot be written", "No space left", done=run("teacher-cache", "run", config), status=4)
        committed = readable_samples(disk / "cache")
        assert not list(disk.rglob(".tmp-*"))
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        summary = json.loads(run_ok("teacher-cache", "run", config, "--json"))
        assert summary["complete"]
        assert summary["cache_samples"] == readable_samples(made[1]) > committed > 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_size_limit_keeps_what_was_committed(made: tuple[Workspace, Path], tmp_path: Path) -> None:
    config = made[0].cache_config(tmp_path / "cache")
    done = subprocess.run(
        command_line("teacher-cache", "run", config),
        capture_output=True,
        text=True,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000)),
        timeout=300,
        check=False,
    )
    refused("cannot be written", "File too large", done=done, status=4)
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


def train(made: tuple[Workspace, Path], cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("train-student", "run", made[0].train_config(cache, cache.parent / "student"), *arguments)


def test_training_on_no_cache(made: tuple[Workspace, Path], tmp_path: Path) -> None:
    config = made[0].train_config(tmp_path / "nothing", tmp_path / "student")
    refused("manifest.json", "not found", done=run_installed("train-student", "run", config))


def test_training_on_a_truncated_tar(made: tuple[Workspace, Path], copy: Path) -> None:
    tar = copy / "shard-000001.logits.tar"
    os.truncate(tar, tar.stat().st_size - 700)
    refused("shard-000001.logits.tar", "bytes, the manifest says", done=train(made, copy), status=3)


def test_training_on_a_flipped_bit(made: tuple[Workspace, Path], copy: Path) -> None:
    for tar in copy.glob("*.logits.tar"):
        data = bytearray(tar.read_bytes())
        data[1200] ^= 4  # in the first sample's payload
        tar.write_bytes(data)
    refused(".logits.tar: sample ", "xxh3 of", done=train(made, copy), status=3)


def test_training_on_a_changed_index(made: tuple[Workspace, Path], copy: Path) -> None:
    mark = copy / "shard-000000.json"
    mark.write_text(mark.read_text().replace('"offsets":[512', '"offsets":[513', 1))
    refused("shard-000000.json", "sha256 is", done=train(made, copy), status=3)


def test_training_on_a_missing_file(made: tuple[Workspace, Path], copy: Path) -> None:
    (copy / "shard-000000.logits.tar").unlink()
    refused("shard-000000.logits.tar", "missing", done=train(made, copy), status=3)


def test_a_manifest_of_a_later_format(made: tuple[Workspace, Path], copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["format_version"] = 99
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused("manifest.json", "format_version 99", "upgrade", done=train(made, copy))


def test_a_manifest_that_is_not_json(made: tuple[Workspace, Path], copy: Path) -> None:
    (copy / "manifest.json").write_text("{")
    refused("manifest.json", "JSON", done=train(made, copy), status=3)


TRAINING = [
    ("losses.tla.temperature=7", ["losses.tla.temperature", "7", "1.0, 3.0"]),
    ("student.from_layers=[0,9]", ["student.from_layers", "9", "2 layers"]),
    ("student.teacher=/nowhere/teacher", ["student.teacher", "/nowhere/teacher"]),
    ("loop.micro_batch=3", ["train.yaml", "loop.micro_batch", "unknown key"]),
]


@pytest.mark.parametrize(("setting", "wanted"), TRAINING, ids=[setting for setting, _ in TRAINING])
def test_settings_of_a_training_run(made: tuple[Workspace, Path], copy: Path, setting: str, wanted: list[str]) -> None:
    refused(*wanted, done=train(made, copy, "--set", setting))


def test_a_student_with_another_vocabulary(made: tuple[Workspace, Path], copy: Path, tmp_path: Path) -> None:
    other = write_random_teacher(tmp_path / "other", vocab_size=VOCAB_SIZE - 100)
    config = made[0].train_config(copy, tmp_path / "student", student={"checkpoint": str(other)})
    refused(str(VOCAB_SIZE - 100), str(VOCAB_SIZE), done=run("train-student", "run", config))
