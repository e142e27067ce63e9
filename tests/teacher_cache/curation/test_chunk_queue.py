"""Several processes on one curation: the files of one process, whoever dies, and nobody else meanwhile."""

import json
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConflictError, UserError
from support.commands import Forked, kill_group
from support.curating import STEPS, curate_config, curate_tree, write_curation_input
from teacher_cache.child_process import installed
from teacher_cache.claims import CURATING_QUEUE
from teacher_cache.curation import curation_run
from teacher_cache.curation.chunk_worker import ChunkWorker
from teacher_cache.curation.curation_job import CurationSummary, curate
from teacher_cache.curation.deduplicate import Deduplicate
from teacher_cache.curation.stages import scratch_path
from teacher_cache.shards.lease import LEASE_PREFIX, part_lease, whole_place
from teacher_cache.shards.storage import Storage

SETTINGS: dict[str, Any] = {"records_per_shard": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input, and what one process makes of it in ``one``."""
    made = tmp_path_factory.mktemp("queue")
    write_curation_input(made)
    curate(config(made, made / "one"))
    return made


def config(folder: Path, place: Path | str, **changes: Any) -> Any:
    return curate_config(folder, str(place), output={"path": str(place), **SETTINGS}, **changes)


def files(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


def test_workers_started_at_once_make_the_files_of_one_between_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: dict[tuple[int, int], list[int]] = {}
    transform = ChunkWorker.transform

    def noted(self: ChunkWorker, stage: Any, chunk: int, first: int) -> None:
        done.setdefault((stage.number, chunk), []).append(threading.get_ident())
        time.sleep(0.02)
        transform(self, stage, chunk, first)

    monkeypatch.setattr(ChunkWorker, "transform", noted)
    found: list[CurationSummary] = []
    threads = [
        threading.Thread(target=lambda: found.append(curate(config(folder, tmp_path / "place"), queue=True)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len({summary.digest for summary in found}) == 1
    assert len(found) == 3
    assert files(tmp_path / "place") == files(folder / "one")
    assert not (tmp_path / "place.scratch").exists()
    assert all(len(by) == 1 for by in done.values()), "each chunk was done once"
    assert len({by[0] for by in done.values()}) > 1, "by several of them"


def test_a_killed_worker_costs_its_chunk(folder: Path, tmp_path: Path) -> None:
    """Of two commands, one is killed while it has a chunk in hand."""
    write_curation_input(tmp_path / "input", 250)
    tree = curate_tree(tmp_path / "input", str(tmp_path / "place"))
    tree["output"] = {"path": str(tmp_path / "place"), **SETTINGS}
    (tmp_path / "config.yaml").write_text(json.dumps(tree))
    processes = [Forked("teacher-cache", "curate", tmp_path / "config.yaml", "--queue", "--json") for _ in range(2)]
    try:
        killed = chunk_holder(tmp_path / "place.scratch", {process.pid for process in processes})
        dead, left = sorted(processes, key=lambda process: process.pid != killed)
        kill_group(dead)
        out, err = left.communicate(timeout=300)
    finally:
        for process in processes:
            kill_group(process)
    assert left.returncode == 0, err
    assert dead.returncode == -signal.SIGKILL
    alone = curate(config(tmp_path / "input", tmp_path / "alone"))
    assert json.loads(out)["digest"] == alone.digest
    assert files(tmp_path / "place") == files(tmp_path / "alone")
    assert not (tmp_path / "place.scratch").exists()


def chunk_holder(scratch: Path, pids: set[int], seconds: float = 120) -> int:
    """Wait until one of these processes holds the lease on a chunk of the first stage; its pid."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for path in scratch.glob(f"{LEASE_PREFIX}-01-*.json"):
            try:
                pid = json.loads(path.read_text())["pid"]
            except (OSError, ValueError):  # released meanwhile, or not written yet
                continue
            if pid in pids:
                return int(pid)
        time.sleep(0.002)
    raise AssertionError("no chunk was claimed")


def test_it_continues_what_one_process_began_and_the_other_way_round(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    for began, continues in ((True, False), (False, True)):
        with monkeypatch.context() as patched:
            patched.setattr(curation_run, "write_report", fails)
            with pytest.raises(KeyboardInterrupt):
                curate(config(folder, place), queue=began)
        assert not (place / "curated.json").exists()
        curate(config(folder, place), queue=continues)
        assert files(place) == files(folder / "one")
        for path in place.iterdir():
            path.unlink()


def fails(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_needs_a_device_is_done_by_one_process_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its chunks are claimed by nobody else meanwhile, and the mix, which needs none, is sketched here."""
    monkeypatch.setattr(Deduplicate, "one_process", True)
    sketched: list[int] = []
    sketch = ChunkWorker.sketch

    def noted(self: ChunkWorker, stage: Any, *arguments: Any) -> None:
        sketched.append(stage.number)
        sketch(self, stage, *arguments)

    monkeypatch.setattr(ChunkWorker, "sketch", noted)
    curate(config(folder, tmp_path / "place"), queue=True)
    assert {*sketched} == {2}
    assert files(tmp_path / "place") == files(folder / "one")


def test_nobody_else_has_a_place_at_which_a_queue_works(folder: Path, tmp_path: Path) -> None:
    """Neither a command without the option, nor one with other settings."""
    place = tmp_path / "place"
    wanted = config(folder, place)
    other = config(folder, place, steps=STEPS[:1])
    with part_lease(Storage(str(place)), "worker-0", CURATING_QUEUE):
        for settings, queue in ((wanted, False), (other, True)):
            with pytest.raises(ConflictError, match=r"place/\.lease-worker-0\.json: in use by .*curate --queue"):
                curate(settings, queue=queue)
    with (
        whole_place(Storage(scratch_path(wanted)), "somebody"),
        pytest.raises(UserError, match=r"place\.scratch/\.lease\.json: in use by .*somebody"),
    ):
        curate(wanted, queue=True)
    curate(wanted, queue=True)
    assert files(place) == files(folder / "one")


def test_a_worker_of_a_queue_is_one_process() -> None:
    done = subprocess.run(
        [installed("teacher-cache"), "curate", "none.yaml", "--queue", "--workers", "2"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: --workers 2: with --queue a command is one worker; start the command several times\n"
    )
