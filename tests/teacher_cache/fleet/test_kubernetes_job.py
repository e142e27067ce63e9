"""Manifests, held to Kubernetes' own schemas; no cluster has run them here."""

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner, Result

from support.curating import curate_tree
from support.workspace import cache_tree
from teacher_cache.teacher_cache_cli import main

OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()  # the first in which a limit for each index is on
NEEDED = ("--workers", 4, "--image", "registry.example.org/distil:1", "--volume", "shared:/shared")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "Qwen 3_fleet.yaml"
    tree = cache_tree(Path("/shared/teacher"), Path("/shared/data"), Path("/shared/caches/one"))
    tree["engine"] = {"kind": "vllm", "tensor_parallel": 8}
    path.write_text("# ours: größer\n" + yaml.safe_dump(tree))
    return path


def printed(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["k8s", *map(str, arguments)])


def objects(*arguments: object) -> list[dict[str, Any]]:
    result = printed(*arguments)
    assert result.exit_code == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def pod(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]


def worker(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod(job)["containers"]
    return container


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    "chosen",
    [
        (),
        ("--gpus", 0),
        ("--namespace", "ours", "--service-account", "a.b", "--secret", "s3", "--mem", "2Gi", "--cpus", 4),
    ],
)
def test_manifests_are_valid(config: Path, version: str, chosen: tuple[object, ...]) -> None:
    found = objects(config, *NEEDED, *chosen)
    assert [each["kind"] for each in found] == ["ConfigMap", "Job"]
    for each in found:
        kubernetes_validate.validate(each, version, strict=True)
    assert json.loads(printed(config, *NEEDED, *chosen, "--json").stdout)["items"] == found


def test_the_schemas_find_a_key_that_there_is_not(config: Path) -> None:
    _, job = objects(config, *NEEDED)
    job["spec"]["backoffLimitPerIndexes"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, NEWEST, strict=True)


def test_a_job_of_workers_that_are_replaced(config: Path) -> None:
    settings, job = objects(config, *NEEDED, "--grace", 900)
    assert settings["metadata"]["name"] == job["metadata"]["name"] == "qwen-3-fleet"
    assert settings["data"] == {"config.yaml": config.read_text()}
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (4, 4, "Indexed")
    assert spec["backoffLimitPerIndex"] == 3
    disrupted, stopped = spec["podFailurePolicy"]["rules"]
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [143])
    assert stopped["onExitCodes"]["containerName"] == worker(job)["name"]
    assert pod(job)["restartPolicy"] == "Never"  # what a policy for failures of pods requires
    assert pod(job)["terminationGracePeriodSeconds"] == 900
    assert worker(job)["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_the_worker_is_the_command_itself_and_reads_what_was_mounted(config: Path) -> None:
    hostile = "provenance.notes=$(HOME) $$ `id` 'x'"
    _, job = objects(config, *NEEDED, "--volume", "models:/models:ro", "--set", hostile)
    assert worker(job)["command"] == ["teacher-cache"], "a shell would not pass SIGTERM on"
    arguments = [word.replace("$$", "$") for word in worker(job)["args"]]  # as Kubernetes does
    assert arguments == ["run", "/etc/teacher-cache/config.yaml", "--queue", "--set", hostile]
    assert "$(" not in worker(job)["args"][-1].replace("$$", "")
    volumes = {each["name"]: each for each in pod(job)["volumes"]}
    mounted = {each["mountPath"]: each for each in worker(job)["volumeMounts"]}
    assert volumes.keys() == {each["name"] for each in mounted.values()}
    assert volumes[mounted["/etc/teacher-cache"]["name"]]["configMap"]["name"] == "qwen-3-fleet"
    assert volumes[mounted["/shared"]["name"]]["persistentVolumeClaim"] == {"claimName": "shared", "readOnly": False}
    assert volumes[mounted["/models"]["name"]]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert mounted["/models"]["readOnly"]
    assert volumes[mounted["/dev/shm"]["name"]]["emptyDir"] == {"medium": "Memory"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "output.path=runs/cache"), "output.path: runs/cache: in no mounted volume, so it would be lost"),
        (("--set", "output.path=/sharedx"), "output.path: /sharedx: in no mounted volume"),
        (("--set", "output.path=/shared/../x"), "in no mounted volume"),
        (("--volume", "inner:/shared/caches:ro"), "the volume inner is mounted only to be read"),
        (("--volume", "other:/shared"), "--volume other:/shared: there is something else at /shared"),
        (("--volume", "other:/etc/teacher-cache"), "there is something else at /etc/teacher-cache"),
        (("--volume", "other:relative"), "expected CLAIM:/FOLDER"),
        (("--volume", "other:/a:rw"), "expected CLAIM:/FOLDER"),
        (("--volume", "other:/"), "expected CLAIM:/FOLDER"),
        (("--volume", "other://a"), "expected CLAIM:/FOLDER"),
        (("--volume", "other:/a/../b"), "expected CLAIM:/FOLDER"),
        (("--volume", "Other:/a"), "--volume: 'Other': expected a value"),
        (("--namespace", "a_b"), "--namespace: 'a_b'"),
        (("--secret", "a b"), "--secret: 'a b'"),
        (("--mem", "200GB"), "--mem: '200GB'"),
        (("--image", "a\nb"), "--image: 'a\\nb'"),
        (("--set", 'provenance.notes="a\nb"'), "line breaks and control characters"),
        (("--gpus", 2), "split over 8 devices"),
    ],
)
def test_bad_input_is_refused(config: Path, arguments: tuple[object, ...], says: str) -> None:
    result = printed(config, *NEEDED, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_curation_needs_no_gpu_and_a_shared_folder_to_work_in(tmp_path: Path) -> None:
    path = tmp_path / "curate.yaml"
    path.write_text(yaml.safe_dump(curate_tree(Path("/shared/in"), "/shared/out/curated")))
    curated = (path, *NEEDED, "--part", "curate")
    _, job = objects(*curated)
    kubernetes_validate.validate(job, NEWEST, strict=True)
    assert worker(job)["args"][0] == "curate"
    assert worker(job)["args"][2:] == ["--queue"]
    assert worker(job)["resources"] == {"limits": {}, "requests": {}}
    assert "nvidia.com/gpu" in worker(objects(*curated, "--gpus", 1)[1])["resources"]["limits"]
    refused = printed(*curated, "--set", "output.scratch=/scratch")
    assert refused.exit_code == 2
    assert "output.scratch: /scratch: in no mounted volume, so it would be lost" in refused.stderr
    beside = printed(*curated, "--set", "output.path=/shared")
    assert "output.scratch: /shared.scratch: in no mounted volume" in beside.stderr
    store = printed(*curated, "--set", "output.path=s3://bucket/curated")
    assert "output.scratch: not set: a local folder is needed" in store.stderr


def test_other_paths_outside_of_volumes_are_named(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    here = f"corpus.sources.0.path={config}"
    assert printed(config, *NEEDED, "--set", "teacher.path=/models/teacher", "--set", here).exit_code == 0
    assert caplog.messages == [
        f"{each}: in no mounted volume, so it must be in the image"
        for each in ("teacher.path: /models/teacher", f"corpus.sources.0.path: {config}")
    ]


def test_a_model_of_a_hub_and_an_object_store_need_no_volume(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    urls = ("teacher.path=org/model", "corpus.sources.0.path=s3://bucket/data", "output.path=s3://bucket/cache")
    sets = [word for each in urls for word in ("--set", each)]
    assert len(objects(config, "--workers", 1, "--image", "x", *sets)) == 2
    assert caplog.messages == []


def test_a_generation_can_be_its_part(tmp_path: Path) -> None:
    path = tmp_path / "0123.yaml"
    source = {"path": "/shared/prompts.jsonl"}
    tree = {"generator": {"path": "/shared/t"}, "prompts": {"sources": [source]}, "output": {"path": "/shared/replies"}}
    path.write_text(yaml.safe_dump(tree))
    _, job = objects(path, *NEEDED, "--part", "generate")
    assert worker(job)["args"][0] == "generate"
    assert job["metadata"]["name"] == "teacher-cache", "digits alone are no name for a pod's host"
    assert worker(job)["resources"]["limits"] == {"nvidia.com/gpu": 1}
