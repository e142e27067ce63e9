"""Checkpoints that lost a part: the whole one before is taken and the damage named, or the run is refused."""

import os
import pickle
import shutil
from pathlib import Path

import pytest

from schemas.errors import UserError
from support.amount import amount
from support.damage import DAMAGES
from support.logged import losses
from support.ranks import run
from support.training import MakeRun, training_in
from trainer.distiller import distill
from trainer.run.checkpoint import MARK_FILE, damage, names_in, newest_whole, seal, settle
from trainer.run.machine_failures import one_line
from trainer.run.pickles import check_metadata

TRAINED = amount(10, full=100)  # of all damages, those that are also trained on from


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    return training_in(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Path:
    """A whole run, with checkpoints of steps 4 and 6."""
    output = tmp_path_factory.mktemp("whole") / "out"
    distill(make_run(output))
    return output


def cut_short(finished: Path, output: Path, steps: int = 6) -> Path:
    """The run as it was when its checkpoint of step ``steps`` was written; returns that."""
    shutil.copytree(finished, output)
    shutil.rmtree(output / "final")
    (output / "summary.json").unlink()
    for folder in output.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > steps:
            shutil.rmtree(folder)
    return output / f"checkpoint-{steps}"


def test_every_file_damaged_in_every_way(make_run: MakeRun, finished: Path, tmp_path: Path, caplog) -> None:
    """One file of the newest checkpoint is lost, emptied, cut, changed by a bit, or zeroed."""
    cases = [(name, kind) for name in (*names_in(finished / "checkpoint-6"), MARK_FILE) for kind in DAMAGES]
    assert len(cases) >= 50
    every = max(1, len(cases) // TRAINED)
    for number, (name, kind) in enumerate(cases):
        output = tmp_path / f"{number}"
        DAMAGES[kind](cut_short(finished, output) / name)
        caplog.clear()
        assert newest_whole(output) == output / "checkpoint-4", (name, kind)
        assert f"checkpoint-6 is not complete and will be removed: {name}: " in caplog.text
        if number % every == 0:
            assert distill(make_run(output))["ended"] == "completed"
            assert losses(output) == losses(finished)
            weights = [folder / "final" / "model.safetensors" for folder in (output, finished)]
            assert weights[0].read_bytes() == weights[1].read_bytes()
        shutil.rmtree(output)


def test_every_file_of_a_sharded_checkpoint(make_run: MakeRun, tmp_path: Path, caplog) -> None:
    """The same of a checkpoint that two ranks wrote; what is left is gone on from by one."""
    output = tmp_path / "out"
    loop = {"parallel": "fsdp", "micro_batch_size": 1}
    run(make_run(output, loop=loop), 2)
    names = names_in(output / "checkpoint-6")
    assert {"rng_state_1.pth", "optimizer_0/.metadata", "pytorch_model_fsdp_0/__1_0.distcp"} < set(names)
    kept = shutil.copytree(output / "checkpoint-6", tmp_path / "kept")
    for name in (*names, MARK_FILE):
        for kind, damaged in DAMAGES.items():
            damaged(output / "checkpoint-6" / name)
            caplog.clear()
            assert newest_whole(output) == output / "checkpoint-4", (name, kind)
            assert f"checkpoint-6 is not complete and will be removed: {name}: " in caplog.text
            shutil.copy2(kept / name, output / "checkpoint-6" / name)
    assert newest_whole(output) == output / "checkpoint-6"
    wanted = losses(output)
    DAMAGES["flipped"](output / "checkpoint-6" / "optimizer_0" / "__0_0.distcp")
    summary = run(make_run(output, loop={**loop, "micro_batch_size": 2}), 1)
    assert 0 < summary["tokens_this_run"] < summary["tokens"]
    found = losses(output)
    assert [step for step, _ in found] == [step for step, _ in wanted]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], rel=1e-5)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", MARK_FILE])
def test_the_only_checkpoint_is_damaged(make_run: MakeRun, finished: Path, tmp_path: Path, name: str) -> None:
    """The run has one checkpoint, and a file of it is half gone: nothing is started over behind the user's back."""
    output = tmp_path / "out"
    shutil.rmtree(cut_short(finished, output).with_name("checkpoint-4"))
    DAMAGES["half"](output / "checkpoint-6" / name)
    before = sorted(output.rglob("*"))
    with pytest.raises(
        UserError, match=rf"checkpoint-6: no checkpoint is complete \({name}: .*\); restore .*loop\.resume"
    ):
        distill(make_run(output))
    assert sorted(output.rglob("*")) == before, "nothing was removed"
    distill(make_run(output, loop={"resume": False}))
    assert losses(output) == losses(finished)


@pytest.mark.parametrize("name", [MARK_FILE, "optimizer.pt", "trainer_state.json"])
@pytest.mark.timeout(60)
def test_special_files_in_place_of_files(finished: Path, tmp_path: Path, name: str, caplog) -> None:
    """A pipe that nobody writes to, or a device without end, lies where a file was."""
    for number, plant in enumerate((os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir)):
        output = tmp_path / f"{number}"
        path = cut_short(finished, output) / name
        path.unlink()
        plant(path)
        assert newest_whole(output) == output / "checkpoint-4"
        assert f"checkpoint-6 is not complete and will be removed: {name}: " in caplog.text


def test_a_mark_that_leads_out_of_its_folder(finished: Path, tmp_path: Path) -> None:
    """The mark lists a file elsewhere, so that a foreign file is read."""
    folder = cut_short(finished, tmp_path / "out")
    (tmp_path / "secret").write_text("x")
    mark = (folder / MARK_FILE).read_text()
    for name in ("../../secret", str(tmp_path / "secret")):
        (folder / MARK_FILE).write_text(mark.replace('"optimizer.pt"', f'"{name}"'))
        assert damage(folder) == f"{MARK_FILE}: lists files outside of the checkpoint"


def test_a_disk_that_cannot_be_read_is_not_a_damaged_checkpoint(finished: Path, tmp_path: Path, monkeypatch) -> None:
    """Reading fails for a cause that may pass; the checkpoint must not be removed for it."""
    output = tmp_path / "out"
    cut_short(finished, output)
    monkeypatch.setattr("hashlib.file_digest", lambda *_: os.open("/proc/self/mem/x", os.O_RDONLY))
    with pytest.raises(UserError, match="Not a directory"), one_line(output):
        newest_whole(output)
    assert (output / "checkpoint-6").exists()


class Payload:
    def __reduce__(self):
        return os.system, ("touch planted",)


def test_pickled_code_is_not_run(make_run: MakeRun, finished: Path, tmp_path: Path, monkeypatch) -> None:
    """Who may write a checkpoint puts a pickle with code into a file that torch reads, and marks it whole."""
    monkeypatch.chdir(tmp_path)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        output = tmp_path / name
        folder = cut_short(finished, output, steps=4)
        (folder / name).write_bytes(pickle.dumps(Payload(), protocol=2))
        reseal(folder)
        with pytest.raises(UserError, match=r"checkpoint-4: .*cannot be read"):
            distill(make_run(output))
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(UserError, match=r"\.metadata: names posix\.system"):
        check_metadata(tmp_path / ".metadata")
    assert not (tmp_path / "planted").exists()


def reseal(folder: Path) -> None:
    """Mark a checkpoint as whole, as it is."""
    seal(folder, int(folder.name.split("-")[1]), settle(folder, names_in(folder)))
