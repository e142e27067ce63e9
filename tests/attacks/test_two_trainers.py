"""Two training runs with one output folder: one trains, the other is refused in one line that names it."""

import random
import re
import signal
import time
from pathlib import Path

import pytest

from schemas.errors import ConflictError
from support.amount import amount
from support.commands import Forked, finish, kill_group
from support.logged import losses, read_metrics
from support.ranks import written
from support.training import MakeRun, training_in
from trainer.distiller import distill
from trainer.run.checkpoint import checkpoint_folders, damage
from trainer.run.owner import only_run_in

PAIRS = amount(2, full=20)
REFUSED = r"error: .*/out/\.lease\.json: in use by process {pid} on \S+ \(train-student run, since .*\); {advice}"


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    return training_in(tmp_path_factory.mktemp("inputs"))


def wait_for_steps(output: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() or len(read_metrics(output, "loss")) < steps:
        assert time.monotonic() < deadline, "training did not get that far"
        time.sleep(0.02)


def test_the_second_run_is_refused_while_the_first_runs_sleeps_or_dies(make_run: MakeRun, tmp_path: Path) -> None:
    """The same command is started again beside a run, beside one that is stopped, and after one that was killed."""
    config = make_run(tmp_path / "out", loop={"max_steps": 100_000, "save_every": 5})
    path, output = written(config), Path(config.output)
    first = Forked("train-student", "run", path)
    wait_for_steps(output, 6)
    for number, advice in ((signal.SIGCONT, "wait for its end"), (signal.SIGSTOP, "it is stopped: .*kill -CONT")):
        first.send_signal(number)
        second = finish(Forked("train-student", "run", path), timeout=60)
        assert second.returncode == ConflictError.exit_code
        last = second.stderr.splitlines()[-1]
        assert re.match(REFUSED.format(pid=first.pid, advice=advice), last), last
        assert "Traceback" not in second.stderr
    first.send_signal(signal.SIGCONT)
    before = len(losses(output))
    wait_for_steps(output, before + 3)
    assert [step for step, _ in losses(output)] == list(range(1, len(losses(output)) + 1)), "one run's lines"
    kill_group(first)
    path.write_text(make_run(output, loop={"max_steps": 100_000, "save_every": 7}).model_dump_json())
    third = Forked("train-student", "run", path)
    wait_for_steps(output, len(losses(output)) + 3)
    third.send_signal(signal.SIGTERM)
    assert finish(third).returncode == 128 + signal.SIGTERM


def test_two_runs_started_together(make_run: MakeRun, tmp_path: Path) -> None:
    """The same command twice within two seconds, one of them stopped for a while at any instant."""
    distill(make_run(tmp_path / "alone", loop={"max_steps": 20}))
    rng = random.Random(0)
    for number in range(PAIRS):
        path = written(make_run(tmp_path / f"out{number}", loop={"max_steps": 20}))
        output = path.with_suffix("")
        one = Forked("train-student", "run", path)
        time.sleep(rng.uniform(0, 2) * (number % 2))
        two = Forked("train-student", "run", path)
        time.sleep(rng.uniform(0, 1))
        one.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        one.send_signal(signal.SIGCONT)
        ended = [finish(process, timeout=120) for process in (one, two)]
        codes = [done.returncode for done in ended]
        assert set(codes) <= {0, ConflictError.exit_code}, [done.stderr for done in ended]
        assert 0 in codes
        assert losses(output) == losses(tmp_path / "alone")
        assert not any(damage(folder) for folder in checkpoint_folders(output))


def test_a_run_that_lost_its_lease_commits_nothing(make_run: MakeRun, tmp_path: Path, monkeypatch) -> None:
    """A run that was away too long on a file system without locks wakes up in a folder that is another's."""
    config = make_run(tmp_path / "out")
    lost = ConflictError("another one has taken its place")

    def check(self: object) -> None:
        raise lost

    monkeypatch.setattr("teacher_cache.shards.lease.Lease.check", check)
    with pytest.raises(ConflictError, match="taken its place"):
        distill(config)
    assert not list(Path(config.output).glob("checkpoint-*/checkpoint.json"))
    assert not (Path(config.output) / "final").exists()


def test_first_weights_are_made_by_one_command(make_run: MakeRun, tmp_path: Path) -> None:
    """`train-student init` beside a run."""
    config = make_run(tmp_path / "out")
    with only_run_in(config.output, "a run"):
        done = finish(Forked("train-student", "init", written(config)), timeout=60)
    assert done.returncode == ConflictError.exit_code
    assert "in use by process" in done.stderr
