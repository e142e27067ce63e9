from pathlib import Path

import pytest

from schemas.cache_config import TeacherConfig
from schemas.errors import UserError
from support.models import VOCAB_SIZE, write_random_teacher
from teacher_cache.teacher import describe_teacher, load_model_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_random_teacher(tmp_path / "teacher")


def describe(folder: Path) -> str:
    return describe_teacher(TeacherConfig(path=str(folder))).fingerprint


def test_facts_of_a_teacher(folder: Path) -> None:
    info = describe_teacher(TeacherConfig(path=str(folder), name="tiny", dtype="float32"))
    assert (info.name, info.dtype, info.architecture) == ("tiny", "float32", "LlamaForCausalLM")
    assert (info.num_layers, info.hidden_size, info.vocab_size) == (2, 64, VOCAB_SIZE)
    assert describe_teacher(TeacherConfig(path=str(folder))).name == "teacher"


def test_fingerprint_is_of_the_content_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    same = write_random_teacher(tmp_path / "elsewhere")
    assert describe(folder) == describe(same)


def test_fingerprint_tells_weights_apart(folder: Path, tmp_path: Path) -> None:
    assert describe(folder) != describe(write_random_teacher(tmp_path / "other", seed=1))


def test_fingerprint_tells_configurations_apart(folder: Path) -> None:
    before = describe(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert describe(folder) != before


def test_fingerprint_samples_files_too_large_to_read_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(UserError, match=r"no weights found, looked for \*\.safetensors"):
        describe(folder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.path: .*cannot load a model configuration"):
        describe(tmp_path)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "runs/none/here", "a b"])
def test_what_is_no_folder_is_said_to_be_none(path: str) -> None:
    """Not that its name has a form that names of models on the hub do not have."""
    with pytest.raises(UserError) as refused:
        load_model_config(TeacherConfig(path=path))
    assert str(refused.value) == (
        f"teacher.path: {path} (no such folder here): cannot load a model configuration; give the folder of a Hugging "
        "Face model with its tokenizer"
    )
