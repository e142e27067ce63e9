"""A fleet on a real Ray cluster, whose nodes are processes of this machine: they join, leave and die."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.amount import FULL
from support.commands import Forked, finish, run_installed, run_ok
from support.curating import curate_tree, write_curation_input
from support.models import write_random_teacher
from support.workspace import cache_tree

UNITS = 40 if FULL else 24
TOKENS = 1024  # of a unit: one text each
ENGINE = {"kind": "vllm", "cpu_kv_cache_gib": 1} if FULL else {"kind": "transformers", "device": "cpu"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Units that take a tenth of a second each, or more."""
    folder = tmp_path_factory.mktemp("fleet")
    teacher = write_random_teacher(
        folder / "teacher", hidden_size=256, intermediate_size=2048, num_hidden_layers=6, max_position_embeddings=2048
    )
    (folder / "corpus").mkdir()
    for unit in range(UNITS):
        (folder / f"corpus/{unit:03}.txt").write_text(f"{unit} " + "words that are read " * TOKENS)
    capture = {"logits": {"k": 16}, "draws": None}
    tree = cache_tree(
        teacher, folder / "corpus", folder / "cache", max_tokens=TOKENS, tokens_per_shard=TOKENS,
        capture=capture, engine=ENGINE,
    )  # fmt: skip
    (folder / "cache.yaml").write_text(yaml.safe_dump(tree))
    return folder / "cache.yaml"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that has no place for workers, and a node with one."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        found.add_node(num_cpus=1)
        yield found
        found.shutdown()


def start(cluster: Any, config: Path, *options: object) -> Forked:
    line = ("teacher-cache", "ray", config, "--address", cluster.address, "--json", *options)
    return Forked(*line, cwd=config.parent)


def wait_until(is_so: Callable[[], object], process: Forked, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert process.poll() is None, finish(process).stderr
        assert time.monotonic() < deadline
        time.sleep(0.05)


def marks(cache: Path) -> dict[str, int]:
    """Inodes of the commit marks."""
    return {path.name: path.stat().st_ino for path in cache.glob("shard-*.json")}


def commands_of(config: Path) -> list[int]:
    """Process ids of the workers' commands."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--queue" in words and (place / "cwd").resolve() == config.parent:
            found.append(int(place.name))
    return found


@pytest.mark.skipif(not FULL, reason="a minute; TEST_FULL=1 runs it")
def test_workers_that_can_do_nothing_end_the_fleet(cluster: Any, config: Path) -> None:
    """With the reason that the workers give, and their exit status."""
    (config.parent / "corpus-of-none").mkdir()
    source = f"[{{path: {config.parent / 'corpus-of-none'}, format: text}}]"
    changes = ("--set", f"corpus.sources={source}", "--set", f"output.path={config.parent / 'none'}")
    done = finish(start(cluster, config, "--workers", 1, *changes))
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "error: 1 workers failed 3 times in a row without committing a unit, the last one with status 2"
    )
    assert "corpus-of-none" in last
    assert done.stderr.count("worker 0 on ") == 3


def test_a_signal_has_the_workers_finish_their_units(cluster: Any, config: Path) -> None:
    cache = config.parent / "stopped"
    process = start(cluster, config, "--workers", 2, "--set", f"output.path={cache}")
    wait_until(lambda: marks(cache), process)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    summary = json.loads(done.stdout)
    assert summary["stopped_by"] == "SIGTERM"
    assert summary["units_committed"] == len(marks(cache)) < UNITS
    assert not summary["complete"]
    assert not list(cache.glob(".tmp-*"))
    assert commands_of(config) == []


def test_no_cluster_is_one_line(config: Path) -> None:
    done = finish(Forked("teacher-cache", "ray", config, "--address", "127.0.0.1:1", "--workers", 1))
    assert done.returncode == 6, done.stderr
    assert "error: --address 127.0.0.1:1: cannot connect to a Ray cluster" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(not FULL, reason="half a minute; TEST_FULL=1 runs it")
def test_a_fleet_curates(cluster: Any, tmp_path: Path) -> None:
    """What one process makes of the same input."""
    write_curation_input(tmp_path)
    for name in ("one", "fleet"):
        output = {"path": str(tmp_path / name), "records_per_shard": 12}
        tree = curate_tree(tmp_path, str(tmp_path / name)) | {"output": output}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    run_ok("teacher-cache", "curate", tmp_path / "one.yaml")
    process = start(cluster, tmp_path / "fleet.yaml", "--workers", 2, "--part", "curate")
    done = finish(process)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["complete"]
    assert summary["workers_failed"] == summary["workers_lost"] == 0
    one, fleet = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "fleet"))
    assert one == fleet


@pytest.mark.skipif(not FULL, reason="minutes; TEST_FULL=1 runs it")
def test_nodes_join_leave_and_die(cluster: Any, config: Path) -> None:
    """A worker that waits gets the node that joins; one that is lost costs its unit in hand, and is replaced."""
    cache = config.parent / "cache"
    process = start(cluster, config, "--workers", 3)
    wait_until(lambda: len(marks(cache)) >= 2, process)
    joined = cluster.add_node(num_cpus=2)
    wait_until(lambda: len(commands_of(config)) == 3, process, seconds=30)
    seen = marks(cache)
    wait_until(lambda: len(marks(cache)) >= len(seen) + 2, process)
    os.kill(commands_of(config)[0], signal.SIGKILL)
    wait_until(lambda: len(marks(cache)) >= len(seen) + 4, process)
    seen = marks(cache)
    cluster.remove_node(joined, allow_graceful=False)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["complete"]
    assert summary["units"] == summary["units_committed"] == summary["units_committed_meanwhile"] == len(marks(cache))
    assert summary["units"] >= UNITS
    assert summary["workers_failed"] == 1
    assert summary["workers_lost"] >= 1
    assert len(re.findall(r"worker \d on \S+ ended with signal 9", done.stderr)) == 1, done.stderr
    assert seen.items() <= marks(cache).items(), "a committed unit was written again"
    assert not list(cache.glob(".tmp-*"))
    assert commands_of(config) == []
    assert run_installed("cache-tools", "verify", cache).returncode == 0
    alone = config.parent / "alone"
    run_ok("teacher-cache", "run", config, "--set", f"output.path={alone}")
    digests = [
        json.loads(run_ok("cache-tools", "inspect", each, "--json"))["manifest_digest"] for each in (cache, alone)
    ]
    assert digests[0] == digests[1]
