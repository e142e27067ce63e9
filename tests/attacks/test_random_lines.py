"""Thousands of random command lines and configurations: each ends in time, without a traceback, and says why."""

import shutil
from itertools import islice
from pathlib import Path

import yaml

from support.amount import amount
from support.forker import Ended, Forker
from support.random_lines import command_lines, configurations
from teacher_cache.teacher_cache_cli import main as teacher_cache
from tools.cache_tools_cli import main as cache_tools
from trainer.train_student_cli import main as train_student

GROUPS = {"teacher-cache": teacher_cache, "cache-tools": cache_tools, "train-student": train_student}
LINES = amount(120, full=2500)
CONFIGURATIONS = amount(60, full=2500)
SECONDS = 60
STATUSES = {0, 1, 2, 3, 4, 5, 6, 7, 8}


def ended_well(found: Ended, what: object) -> None:
    assert not found.hung, f"{what}: took more than {SECONDS} s"
    assert "Traceback" not in found.stderr, f"{what}: {found.stderr[-2000:]}"
    assert found.status in STATUSES, f"{what}: {found.status} {found.stderr[-500:]}"
    if found.status > 1:
        assert "rror: " in found.stderr, f"{what}: {found.status} without a word: {found.stderr[-500:]}"
    assert all(line.isprintable() for line in found.stderr.replace("\t", " ").splitlines()), found.stderr


def test_random_command_lines(forker: Forker, workshop: Path, tmp_path: Path) -> None:
    """Somebody mistypes, exchanges and forgets arguments, and tries extreme values."""
    for number, line in enumerate(islice(command_lines(GROUPS, workshop, seed=17), LINES)):
        folder = tmp_path / str(number)
        folder.mkdir()
        ended_well(forker.run(line, folder, timeout=SECONDS, env={"HOME": str(folder)}), line)
        shutil.rmtree(folder)


def test_random_configurations(forker: Forker, workshop: Path, tmp_path: Path) -> None:
    """A configuration has values of wrong types, extremes, missing and unknown keys, or is no YAML at all."""
    trees = [yaml.safe_load((workshop / name).read_text()) for name in ("cache.yaml", "train.yaml")]
    commands = (["teacher-cache", "plan", "c.yaml"], ["train-student", "init", "c.yaml"])
    for number, (tree, text) in enumerate(islice(configurations(trees, seed=17), CONFIGURATIONS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "c.yaml").write_text(text)
        ended_well(forker.run(commands[tree], folder, timeout=SECONDS), text)
        shutil.rmtree(folder)
