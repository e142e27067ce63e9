"""Two teams share caches by the README's commands alone: a real S3 server, and a folder and an identity for each."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import Forked, environment, finish
from support.models import write_text_corpus
from support.workspace import Workspace

README = Path(__file__).parents[2] / "README.md"
TEAMS = re.compile(r"<!-- commands: (team \w) -->\n```console\n(.*?)```", re.DOTALL)


def commands(team: str) -> list[str]:
    """What the README tells a team to type."""
    (text,) = [text for name, text in TEAMS.findall(README.read_text()) if name == team]
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


class Team:
    """A folder of its own, and a home folder of its own in it."""

    def __init__(self, folder: Path, bucket: str) -> None:
        self.folder = folder
        self.bucket = bucket
        (folder / "home").mkdir(parents=True)
        self.environment = {**environment(), "HOME": str(folder / "home")}

    def types(self, line: str) -> str:
        """Run a command line as the README has it, but for the bucket's name; returns what it prints."""
        line = line.replace("s3://bucket", self.bucket)
        done = finish(Forked(*shlex.split(line), env=self.environment, cwd=self.folder))
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def make_team(s3_url: str, tmp_path: Path) -> Callable[[str], Team]:
    return lambda name: Team(tmp_path / name, s3_url)


def test_one_team_shares_a_cache_and_another_trains_from_it(
    workspace: Workspace, make_team: Callable[[str], Team]
) -> None:
    first, second = make_team("first"), make_team("second")
    capture = {"logits": {"k": 16}, "draws": None, "hidden": {"layers": [1]}}
    config = workspace.cache_config(first.folder / "runs/demo/cache", capture=capture)
    first.types(f"teacher-cache run {config}")
    for line in commands("team A"):
        first.types(line)

    shutil.copy(first.folder / "team-a.key.pub", second.folder)
    corpus = write_text_corpus(workspace.folder / "other corpus", documents=12, seed=1)
    ours = Workspace(workspace.folder, workspace.teacher, corpus)
    config = ours.cache_config(second.folder / "runs/ours/cache", capture={"logits": {"k": 16}, "draws": None})
    second.types(f"teacher-cache run {config}")
    config = ours.train_config(second.folder / "nothing", second.folder / "runs/student")
    (second.folder / "configs").mkdir()
    shutil.copy(config, second.folder / "configs/demo-train.yaml")
    for line in commands("team B"):
        second.types(line)

    found = {path.name for path in (second.folder / "caches/demo").iterdir()}
    assert "shard-000000.logits.tar" in found
    assert "shard-000000.hidden.tar" not in found
    assert (second.folder / "demo.html").read_text().startswith("<!doctype html>")
    assert (second.folder / "runs/student/final/model.safetensors").exists()
