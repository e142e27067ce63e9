"""A machine that fails while a student is trained: one line, no whole checkpoint lost, and the same command goes on."""

import random
import resource
import shutil
import signal
from pathlib import Path

import pytest

from support.amount import amount
from support.callbacks import StopAt
from support.commands import finish
from support.forker import FAULTS, Forker
from support.logged import losses
from support.ranks import started, written
from support.training import training_in
from teacher_cache.stop_request import StopRequest
from trainer.distiller import distill
from trainer.run.checkpoint import checkpoint_folders, damage

INSTANTS = amount(2, full=40)  # of each fault


@pytest.mark.skipif(shutil.which("gcc") is None, reason="faults are injected by a library in C")
def test_every_fault_at_any_instant(forker: Forker, tmp_path: Path) -> None:
    """From some call on the disk is full or the quota used up; or one call fails, or kills the process."""
    make_run = training_in(tmp_path / "inputs")
    distill(make_run(tmp_path / "whole"))
    config = make_run(tmp_path / "out")
    output, stop = Path(config.output), StopRequest()
    distill(config, stop, [StopAt(2, stop)])
    shutil.copytree(output, tmp_path / "start")
    line = ["train-student", "run", str(written(config))]
    rng = random.Random(0)

    def as_it_was() -> None:
        shutil.rmtree(output)
        shutil.copytree(tmp_path / "start", output)

    for fault in FAULTS:
        as_it_was()
        calls = forker.run(line, tmp_path, fault=fault, below=output).calls
        assert calls > 30, fault
        step = calls / INSTANTS
        for number in range(INSTANTS):
            at = int((number + rng.random()) * step) + 1
            as_it_was()
            ended = forker.run(line, tmp_path, fault=fault, at=at, below=output)
            told = (fault, at, calls, ended)
            assert not ended.hung, told
            assert "Traceback" not in ended.stderr, told
            errors = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
            if fault == "kill":
                assert ended.status in (0, -signal.SIGKILL), told
            else:
                assert len(errors) == (ended.status != 0), told
                assert ended.status in (0, 4, 8), told
            whole = [folder for folder in checkpoint_folders(output) if damage(folder) is None]
            assert whole, told
            distill(config)
            assert losses(output) == losses(tmp_path / "whole"), told
            final = Path("final") / "model.safetensors"
            assert (output / final).read_bytes() == (tmp_path / "whole" / final).read_bytes(), told


def little_room() -> None:
    """No file of more than 60 KB; optimiser states are larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_of_two_ranks_cannot_write(tmp_path: Path, parallel: str) -> None:
    """The other one must not wait for ever, nor end in a traceback."""
    loop = {"parallel": parallel, "micro_batch_size": 1}
    ranks = started(training_in(tmp_path / "inputs")(tmp_path / "out", loop=loop), 2, before=little_room)
    ended = [finish(rank, timeout=120) for rank in ranks]
    assert [done.returncode for done in ended] in ([4, 8], [4, 4])
    for done in ended:
        assert sum(text.startswith("error: ") for text in done.stderr.splitlines()) == 1, done.stderr
        assert "Traceback" not in done.stderr
    assert "File too large; complete checkpoints stay" in ended[0].stderr
    left = [path.name for path in (tmp_path / "out").glob("checkpoint-*/*")]
    assert set(left) <= {"rng_state_1.pth"}, "rank 0 removes what is half written; rank 1 may write its part after that"
