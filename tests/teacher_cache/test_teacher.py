import json
from pathlib import Path

import pytest
from transformers import AutoConfig, PreTrainedConfig

from schemas.cache_config import TeacherConfig
from schemas.errors import UserError
from support.models import VOCAB_SIZE, write_random_teacher
from teacher_cache.teacher import describe_teacher, load_model_config, older_fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_random_teacher(tmp_path / "teacher")


def describe(folder: Path) -> str:
    return describe_teacher(TeacherConfig(path=str(folder))).fingerprint


def test_description_of_a_teacher(folder: Path) -> None:
    info = describe_teacher(TeacherConfig(path=str(folder), name="tiny", dtype="float32"))
    assert (info.name, info.dtype, info.architecture) == ("tiny", "float32", "LlamaForCausalLM")
    assert (info.num_layers, info.hidden_size, info.vocab_size) == (2, 64, VOCAB_SIZE)
    assert describe_teacher(TeacherConfig(path=str(folder))).name == "teacher"


def test_fingerprint_depends_on_content_not_on_location(folder: Path, tmp_path: Path) -> None:
    same = write_random_teacher(tmp_path / "elsewhere")
    assert describe(folder) == describe(same)


def test_fingerprint_depends_on_the_weights(folder: Path, tmp_path: Path) -> None:
    assert describe(folder) != describe(write_random_teacher(tmp_path / "other", seed=1))


def test_fingerprint_depends_on_the_configuration(folder: Path) -> None:
    before = describe(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert describe(folder) != before


def test_fingerprint_samples_large_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_cache.teacher.SAMPLED_BLOCKS", 4)
    monkeypatch.setattr("teacher_cache.teacher.BLOCK_BYTES", 1024)
    before = describe(folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # the last block is always among the sampled ones
    weights.write_bytes(data)
    assert describe(folder) != before


def test_a_teacher_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights found, expected \*\.safetensors"):
        describe(folder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.path: .*cannot load a model configuration"):
        describe(tmp_path)


def as_other_version(folder: Path) -> None:
    """The same model, saved by another version of transformers, with keys in another order."""
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    settings["torch_dtype"] = settings.pop("dtype")
    settings["transformers_version"] = "4.0.0"
    config.write_text(json.dumps(dict(reversed(settings.items()))))


def test_fingerprint_is_the_same_for_every_version_of_transformers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, older = describe(folder), older_fingerprint(TeacherConfig(path=str(folder)))
    to_dict = PreTrainedConfig.to_dict
    monkeypatch.setattr(PreTrainedConfig, "to_dict", lambda self: to_dict(self) | {"a_new_default": 1})
    assert describe(folder) == before
    assert older_fingerprint(TeacherConfig(path=str(folder))) != older, "it was taken from the defaults"
    as_other_version(folder)
    assert describe(folder) == before


@pytest.mark.parametrize("nested", [False, True])
def test_fingerprint_ignores_keys_that_saving_changes_at_any_depth(folder: Path, nested: bool) -> None:
    config = folder / "config.json"
    settings = json.loads(config.read_text())

    def fingerprint_with(**changes: object) -> str:
        changed = {"vision_config": settings | changes} if nested else changes
        config.write_text(json.dumps(settings | changed))
        return describe(folder)

    before = fingerprint_with()
    for volatile in ("dtype", "torch_dtype", "transformers_version", "_name_or_path"):
        assert fingerprint_with(**{volatile: "float32"}) == before, volatile
    assert fingerprint_with(rope_theta=5.0) != before


def test_fingerprint_of_a_hub_id_reads_the_cached_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached_file(path: str, name: str, revision: str | None) -> str:
        assert (path, revision) == ("someone/model", "main")
        return str(folder / name)

    monkeypatch.setattr("transformers.utils.cached_file", cached_file)
    config = TeacherConfig(path="someone/model", revision="main")
    model_config = AutoConfig.from_pretrained(folder)
    monkeypatch.setattr("teacher_cache.teacher.load_model_config", lambda *_: model_config)
    before = describe_teacher(config).fingerprint
    as_other_version(folder)
    assert describe_teacher(config).fingerprint == before
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.1}))
    assert describe_teacher(config).fingerprint != before


@pytest.mark.parametrize("path", ["/nowhere/at/all", "runs/none/here", "a b"])
def test_a_path_without_a_folder_is_reported_as_such(path: str) -> None:
    """Instead of an error about the syntax of hub ids."""
    with pytest.raises(UserError) as refused:
        load_model_config(TeacherConfig(path=path))
    assert str(refused.value) == (
        f"teacher.path: {path} (no such folder): cannot load a model configuration; pass the folder of a Hugging "
        "Face model with its tokenizer"
    )
