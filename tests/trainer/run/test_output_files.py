import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.distiller import distill
from trainer.run.output_files import replace_text

FINAL = {"config.json", "generation_config.json", "model.safetensors", "README.md"}


def test_the_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    replace_text(tmp_path / "a.json", "old")
    replace_text(tmp_path / "a.json", "new · é")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new · é"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    replace_text(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(tmp_path / "a.json", "\udc80")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_output_files_have_the_modes_of_the_umask(make_config, umask: None) -> None:
    """safetensors alone creates weight files readable by their owner only."""
    config = make_config(loop={"max_steps": 2})
    distill(config)
    modes = {
        path.relative_to(config.output): stat.S_IMODE(path.stat().st_mode)
        for name in ("final", "checkpoint-2")
        for path in (Path(config.output) / name).rglob("*")
    }
    assert Path("final/model.safetensors") in modes
    assert set(modes.values()) == {0o640}, modes


def test_every_file_and_folder_of_a_checkpoint_is_synced_before_its_mark(make_config, monkeypatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def recorded_sync(descriptor: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        done.append(f"rename {target}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    config = make_config(loop={"max_steps": 2})
    distill(config)
    for name, last in (("checkpoint-2", "checkpoint-2/checkpoint.json"), ("final.tmp", "final")):
        folder, committed = f"{config.output}/{name}", done.index(f"rename {config.output}/{last}")
        files = {Path(path).name for path in done[:committed] if path.startswith(folder + "/")}
        found = {path.name for path in Path(config.output, last).parent.glob("*.*")} if "/" in last else FINAL
        assert found - {"checkpoint.json"} <= files, found - files
        assert folder in done[:committed], "its names"
        assert config.output in done[committed:], "and its own"
