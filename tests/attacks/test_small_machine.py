"""Machines with little of what worker processes need: shared memory and file handles."""

import ctypes
import json
import os
import resource
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from support.commands import MODULES, environment, fork_server
from support.training import MakeRun, training_in

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
PATIENCE = 60  # seconds in which a command must have ended, on a machine that has time


def _mount_small_shm(size: str) -> None:
    """A /dev/shm of this size, for this process and its children only."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    if done or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def _run(line: list[str], output: str, shm: str | None, handles: int | None) -> None:
    os.setsid()
    if shm is not None:
        _mount_small_shm(shm)
    os.environ.clear()
    os.environ.update(environment())
    for number, name in enumerate(("stdout", "stderr"), start=1):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT), number)
    if handles is not None:
        os.closerange(3, 256)
        resource.setrlimit(resource.RLIMIT_NOFILE, (handles, handles))
    sys.argv = line
    import_module(MODULES[line[0]]).main()


def run(tmp_path: Path, *arguments: object, shm: str | None = None, handles: int | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command on a small machine; fails if it hangs."""
    output = tmp_path / "streams"
    output.mkdir(exist_ok=True)
    process = fork_server().Process(target=_run, args=([*map(str, arguments)], str(output), shm, handles))
    start = time.monotonic()
    process.start()
    process.join(4 * PATIENCE)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"hangs: {(output / 'stderr').read_text()}")
    print(f"{time.monotonic() - start:.1f} s")
    assert process.exitcode is not None
    return process.exitcode, *((output / name).read_text() for name in ("stdout", "stderr"))


def _may_mount() -> bool:
    process = fork_server().Process(target=_mount_small_shm, args=("64k",))
    process.start()
    process.join()
    return process.exitcode == 0


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    return training_in(tmp_path_factory.mktemp("training"))


def config_file(make_run: MakeRun, tmp_path: Path, **data: object) -> Path:
    loop = {"max_steps": 2, "micro_batch_size": 16}
    settings = make_run(tmp_path / "out", loop=loop, data=data).model_dump_json()
    (tmp_path / "train.yaml").write_text(settings)
    return tmp_path / "train.yaml"


def errors(stderr: str) -> list[str]:
    """What is said beside the log."""
    return [line for line in stderr.splitlines() if " INFO " not in line and " WARNING " not in line]


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.skipif("not _may_mount()", reason="may not mount")
def test_a_container_with_64_kib_of_shared_memory(make_run: MakeRun, tmp_path: Path) -> None:
    """A container leaves 64 KiB of /dev/shm, less than one batch, to a worker process: batches go through its pipe."""
    (tmp_path / "alone").mkdir()
    code, _, stderr = run(tmp_path / "alone", "train-student", "run", config_file(make_run, tmp_path / "alone"))
    assert code == 0, stderr
    small = config_file(make_run, tmp_path, num_workers=1)
    code, _, stderr = run(tmp_path, "train-student", "run", small, shm="64k")
    assert code == 0, stderr
    assert not errors(stderr)
    assert losses(tmp_path / "out") == losses(tmp_path / "alone" / "out")


@pytest.mark.skipif("not _may_mount()", reason="may not mount")
def test_more_workers_than_the_machine_allows(make_run: MakeRun, tmp_path: Path) -> None:
    """Eight worker processes want more semaphores than 64 KiB of /dev/shm hold."""
    small = config_file(make_run, tmp_path, num_workers=8)
    code, stdout, stderr = run(tmp_path, "train-student", "run", small, shm="64k")
    assert (code, stdout) == (8, "")
    assert len(errors(stderr)) == 1
    assert stderr.startswith("error: data.num_workers: 8: worker processes need more room in /dev/shm, which has ")
    assert "--shm-size" in stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_24_file_handles(make_run: MakeRun, tmp_path: Path, workers: int) -> None:
    """A shell leaves 24 file handles to the command."""
    small = config_file(make_run, tmp_path, num_workers=workers)
    code, _, stderr = run(tmp_path, "train-student", "run", small, handles=24)
    if workers == 0:
        assert code == 0, stderr
        assert not errors(stderr)
    else:
        assert code == 8
        assert errors(stderr) == [stderr.strip()]
        assert stderr.startswith("error: data.num_workers: 1: too many open files, the limit is 24; raise it (ulimit")


def test_ten_caches_and_few_handles(make_run: MakeRun, tmp_path: Path) -> None:
    """Ten caches have more files than the command may open, and samples that cannot be read are to be skipped."""
    url = make_run(tmp_path).data.shares[0].url
    shares = [{"url": str(shutil.copytree(url, tmp_path / f"cache-{number}"))} for number in range(10)]
    outputs = []
    for handles in (None, 64):
        folder = tmp_path / str(handles)
        folder.mkdir()
        line = config_file(make_run, folder, cache=shares, on_corrupt="skip")
        code, stdout, stderr = run(folder, "train-student", "run", line, "--json", handles=handles)
        assert code == 0, stderr
        assert json.loads(stdout)["skipped_samples"] == 0
        outputs.append(losses(folder / "out"))
    assert outputs[0] == outputs[1]
