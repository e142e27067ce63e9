"""Scripts for Slurm, run by bash with a worker that does what a test says, below a Slurm of one machine."""

import json
import shlex
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from support.stub_slurm import StubSlurm
from support.workspace import cache_tree
from teacher_cache.fleet.slurm_script import SlurmOptions, slurm_script
from teacher_cache.fleet.worker_command import worker_command
from teacher_cache.teacher_cache_cli import main

HOSTILE = "a 'b' \"c\" $(touch gone) `touch gone` \\ ; & | > * ~ é #"
WAITS = "touch {folder}/ready; while :; do sleep 0.02; done"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "fleet.yaml")


def write_config(path: Path, output: str = "/shared/cache", **engine: object) -> Path:
    tree = cache_tree(Path("/models/teacher"), Path("/data"), Path(output))
    path.write_text(yaml.safe_dump({**tree, "engine": {**tree["engine"], **engine}}))
    return path


def fake_worker(folder: Path, then: str) -> str:
    """A line that puts a ``teacher-cache`` first in PATH: it keeps its arguments, and ends at once if started again."""
    programs = folder / "fake programs"
    programs.mkdir()
    again = f"[ -e {folder}/again ] && exit 0; touch {folder}/again"
    lines = ["#!/bin/bash", f"printf '%s\\0' \"$@\" > {folder}/arguments", again, then.format(folder=folder)]
    (programs / "teacher-cache").write_text("\n".join(lines))
    (programs / "teacher-cache").chmod(0o755)
    return f"export PATH={shlex.quote(str(programs))}:$PATH"


def started(slurm: StubSlurm, config: Path, then: str, grace: int = 300) -> subprocess.Popen[str]:
    folder = config.parent
    options = SlurmOptions(workers=1, grace=grace, setup=(fake_worker(folder, then),))
    script = slurm_script(worker_command("run", str(config), ()), options, folder)
    return slurm.start(script, folder)


def warned(slurm: StubSlurm, config: Path, then: str, grace: int = 300) -> int:
    """The status of a job whose worker is warned."""
    return warned_when_ready(slurm, config, started(slurm, config, f"{then}; {WAITS}", grace))


def warned_when_ready(slurm: StubSlurm, config: Path, job: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + 60
    while not (config.parent / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    slurm.warn(0)
    return job.wait(60)


@pytest.fixture
def slurm(tmp_path: Path) -> StubSlurm:
    return StubSlurm(tmp_path / "slurm")


@pytest.mark.parametrize("status", [0, 2, 143])
def test_the_status_of_a_worker_that_was_not_warned_is_that_of_its_task(
    slurm: StubSlurm, config: Path, status: int
) -> None:
    assert started(slurm, config, f"exit {status}").wait(60) == status
    assert slurm.restarts(0) == 0


@pytest.mark.parametrize(("on_signal", "grace"), [("trap 'exit 143' TERM", 300), ("trap '' TERM", 1)])
def test_a_warned_worker_is_told_or_else_killed_and_starts_again(
    slurm: StubSlurm, config: Path, on_signal: str, grace: int
) -> None:
    assert warned(slurm, config, on_signal, grace) == 0
    assert slurm.restarts(0) == 1


def test_a_warning_during_the_set_up_starts_the_worker_again(slurm: StubSlurm, config: Path) -> None:
    folder = config.parent
    waits = f"[ -e {folder}/ready ] || {{ {WAITS.format(folder=folder)}; }}"
    options = SlurmOptions(workers=1, setup=(waits, fake_worker(folder, "exit 0")))
    job = slurm.start(slurm_script(worker_command("run", str(config), ()), options, folder), folder)
    assert warned_when_ready(slurm, config, job) == 0
    assert slurm.restarts(0) == 1


def test_a_worker_that_fails_after_the_warning_does_not_start_again(slurm: StubSlurm, config: Path) -> None:
    assert warned(slurm, config, "trap 'exit 6' TERM") == 6
    assert slurm.restarts(0) == 0


def test_a_cancelled_job_stays_cancelled(slurm: StubSlurm, config: Path) -> None:
    slurm.cancel()
    assert warned(slurm, config, "trap 'exit 143' TERM") == 143
    assert slurm.restarts(0) == 0


def test_arguments_arrive_as_they_are_and_nothing_in_them_is_run(slurm: StubSlurm, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    write_config(folder / f"-{HOSTILE}.yaml")
    notes = f"provenance.notes={json.dumps(HOSTILE)}"
    command = worker_command("run", str(folder / f"-{HOSTILE}.yaml"), (notes,))
    command = replace(command, config=f"-{HOSTILE}.yaml")  # as it is called within the folder
    options = SlurmOptions(workers=1, setup=(fake_worker(tmp_path, f"pwd > {tmp_path}/folder; exit 0"),))
    assert slurm.start(slurm_script(command, options, folder), tmp_path).wait(60) == 0
    found = (tmp_path / "arguments").read_text().split("\0")
    assert found == ["run", f"./-{HOSTILE}.yaml", "--queue", "--set", notes, ""]
    assert (tmp_path / "folder").read_text() == f"{folder}\n"
    assert not list(tmp_path.rglob("gone"))


def printed(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sbatch", *map(str, arguments)])


def test_what_is_asked_of_slurm(config: Path, tmp_path: Path) -> None:
    chosen = "--workers 8 --at-a-time 3 --gpus 2 --cpus 16 --mem 200G --time 1-12 --partition a,b --account x"
    result = printed(config, *chosen.split())
    assert result.exit_code == 0, result.stderr
    checked = subprocess.run(["bash", "-n"], input=result.stdout, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    asked = [line.removeprefix("#SBATCH --") for line in result.stdout.splitlines() if line.startswith("#SBATCH")]
    assert asked == [
        "job-name=fleet", "array=0-7%3", "nodes=1", "ntasks=1", "gpus-per-node=2", "cpus-per-task=16", "mem=200G",
        "time=1-12", "partition=a,b", "account=x", "requeue", "signal=B:TERM@300", "open-mode=append",
        "output=fleet-%A_%a.log",
    ]  # fmt: skip
    assert json.loads(printed(config, *chosen.split(), "--json").stdout) == {"script": result.stdout}


@pytest.mark.parametrize(
    ("engine", "gpus"),
    [
        ({"kind": "vllm", "tensor_parallel": 4}, ["gpus-per-node=4"]),
        ({"kind": "transformers", "device": "auto"}, ["gpus-per-node=1"]),
        ({"kind": "transformers", "device": "cpu"}, []),
    ],
)
def test_gpus_are_what_the_engine_needs(tmp_path: Path, engine: dict[str, object], gpus: list[str]) -> None:
    lines = printed(write_config(tmp_path / "fleet.yaml", **engine), "--workers", 1).stdout.splitlines()
    assert [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH --gpu")] == gpus


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--time", "9"), "--time 9: the warning comes 300 s before the end"),
        (("--time", "00:09:59"), "--time 00:09:59: the warning comes 300 s"),
        (("--time", "soon"), "--time: 'soon': expected a time such as"),
        (("--mem", "200G\n#SBATCH --wrap=x"), "--mem: '200G\\n"),
        (("--partition", "a b"), "--partition: 'a b'"),
        (("--account", "$(id)"), "--account: '$(id)'"),
        (("--setup", "a\nb"), "--setup: 'a\\nb': line breaks"),
        (("--set", 'provenance.notes="a\nb"'), "line breaks and control characters"),
        (("--set", "engine.kind=none"), "engine.kind: Input should be"),
        (("--set", "engine.kind=vllm", "--set", "engine.tensor_parallel=8", "--gpus", "4"), "split over 8 devices"),
        (("--part", "generate"), "generator: this key is required"),
    ],
)
def test_bad_input_is_refused(config: Path, arguments: tuple[str, ...], says: str) -> None:
    result = printed(config, "--workers", 1, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("time", ["10", "10:00", "0:10:00", "0-1", "0-0:10", "0-0:10:00"])
def test_all_forms_of_a_time_are_understood(config: Path, time: str) -> None:
    assert f"--time={time}\n" in printed(config, "--workers", 1, "--time", time).stdout


@pytest.mark.parametrize(("output", "is_warned"), [("/tmp/x", True), ("/tmpx", False), ("s3://b/tmp", False)])
def test_an_output_that_every_node_has_for_itself(
    config: Path, caplog: pytest.LogCaptureFixture, output: str, is_warned: bool
) -> None:
    with caplog.at_level("WARNING"):
        command = worker_command("run", str(config), (f"output.path={output}",))
        slurm_script(command, SlurmOptions(workers=1), Path("/shared"))
    assert ("a folder that all nodes share" in caplog.text) is is_warned


def test_a_configuration_that_is_not_there_is_named(config: Path) -> None:
    result = printed(config.with_name("none.yaml"), "--workers", 1)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "none.yaml" in result.stderr
