"""A script of ``teacher-cache sbatch`` as it runs: an array of workers, one of which is warned and starts again."""

import json
import time
from pathlib import Path

import yaml

from support.commands import run_ok
from support.curating import curate_tree, write_curation_input
from support.forked_program import ForkedProgram
from support.stub_slurm import StubSlurm
from support.talking import generate_tree, write_prompts, write_talking_generator
from support.workspace import Workspace

# The second worker finds a first shard, and uses its code table as a single worker would.
LATER = '[ "$SLURM_ARRAY_TASK_ID" = 0 ] || until [ -e {cache}/shard-000000.json ]; do sleep 0.02; done'


def test_an_array_with_a_requeued_worker_makes_the_cache_of_a_single_one(workspace: Workspace) -> None:
    folder = workspace.folder / "submitted from"
    folder.mkdir()
    reference, cache = ({"path": str(workspace.folder / name), "tokens_per_shard": 72} for name in ("one", "many"))
    alone = json.loads(run_ok("teacher-cache", "run", workspace.cache_config(Path(), output=reference), "--json"))

    slurm = StubSlurm(workspace.folder / "bin")
    with ForkedProgram() as program:
        config = workspace.cache_config(Path(), output=cache)
        setup = ("--setup", f"export PATH={program.folder}:$PATH", "--setup", LATER.format(cache=cache["path"]))
        script = run_ok("teacher-cache", "sbatch", config, "--workers", 2, *setup)
        job = slurm.start(script, folder)
        marks, deadline = Path(cache["path"]), time.monotonic() + 120
        while len(list(marks.glob("shard-*.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        slurm.warn(0)
        assert job.wait(120) == 0, [log.read_text() for log in folder.glob("*.log")]

    assert [slurm.restarts(task) for task in (0, 1)] == [1, 0]
    log = (folder / "cache-42_0.log").read_text()
    assert log.count("worker 0 on ") == 2, "the log of the first start is kept"
    manifest = json.loads(run_ok("cache-tools", "inspect", cache["path"], "--json"))
    assert manifest["complete"]
    assert manifest["manifest_digest"] == alone["manifest_digest"]
    run_ok("cache-tools", "verify", cache["path"])


def test_an_array_that_generates_writes_the_replies_of_a_single_process(tmp_path: Path) -> None:
    """One of its workers is warned, too."""
    write_talking_generator(tmp_path / "generator")
    write_prompts(tmp_path / "prompts.jsonl", 40)
    for name in ("one", "many"):
        tree = generate_tree(tmp_path / "generator", tmp_path / "prompts.jsonl", tmp_path / name)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    alone = json.loads(run_ok("teacher-cache", "generate", tmp_path / "one.yaml", "--json"))

    slurm = StubSlurm(tmp_path / "bin")
    with ForkedProgram() as program:
        options = ("--part", "generate", "--workers", 2, "--setup", f"export PATH={program.folder}:$PATH")
        job = slurm.start(run_ok("teacher-cache", "sbatch", tmp_path / "many.yaml", *options), tmp_path)
        deadline = time.monotonic() + 120
        while not [*(tmp_path / "many").glob("shard-*.replies.zst")] and time.monotonic() < deadline:
            time.sleep(0.002)
        slurm.warn(0)
        assert job.wait(120) == 0, [log.read_text() for log in tmp_path.glob("*.log")]

    files = {path.name: path.read_bytes() for path in (tmp_path / "many").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert json.loads(files["generated.json"])["sha256"] == alone["digest"]
    assert sum(name.endswith(".replies.zst") for name in files) == alone["units_written"] > 2


def test_an_array_that_curates_makes_the_corpus_of_a_single_process(tmp_path: Path) -> None:
    write_curation_input(tmp_path)
    for name in ("one", "many"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(curate_tree(tmp_path, str(tmp_path / name))))
    alone = json.loads(run_ok("teacher-cache", "curate", tmp_path / "one.yaml", "--json"))

    slurm = StubSlurm(tmp_path / "bin")
    with ForkedProgram() as program:
        options = ("--part", "curate", "--workers", 2, "--setup", f"export PATH={program.folder}:$PATH")
        script = run_ok("teacher-cache", "sbatch", tmp_path / "many.yaml", *options)
        assert "--gpus-per-node" not in script
        job = slurm.start(script, tmp_path)
        assert job.wait(120) == 0, [log.read_text() for log in tmp_path.glob("*.log")]

    files = {path.name: path.read_bytes() for path in (tmp_path / "many").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert json.loads(files["curated.json"])["sha256"] == alone["digest"]
    assert not (tmp_path / "many.scratch").exists()
