"""Folders that bring code along. It runs only where the configuration says so, and nobody is asked."""

import ast
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from schemas.cache_config import TeacherConfig
from schemas.errors import UserError
from schemas.train_config import TrainConfig
from support.models import tiny_tokenizer
from support.training import MakeRun, training_in, write_student
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from teacher_cache.teacher import load_model_config as load_teacher_config
from teacher_cache.teacher import load_tokenizer as load_teacher_tokenizer
from teacher_cache.tokenizer import describe_tokenizer
from tools.finding.search import tokenizer_fingerprint
from trainer.distiller import distill
from trainer.evaluate import evaluate_folder
from trainer.initial_weights import materialise_student
from trainer.student.build import load_student
from trainer.student.student_tokenizer import check_tokenizer
from trainer.train_student_cli import main

PLANTED = """
import pathlib
pathlib.Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class PlantedConfig(LlamaConfig):
    model_type = "planted"
class PlantedModel(LlamaForCausalLM):
    config_class = PlantedConfig
class PlantedTokenizer(PreTrainedTokenizerFast):
    pass
"""
Plant = Callable[..., Path]


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Runs on one small cache."""
    return training_in(tmp_path_factory.mktemp("training"))


@pytest.fixture
def small_cache(make_run: MakeRun) -> Path:
    """A cache to train on."""
    return Path(make_run(Path("out")).data.shares[0].url)


@pytest.fixture
def make_config(tmp_path: Path, make_run: MakeRun) -> Callable[..., TrainConfig]:
    """A run of one step of the student that is given."""
    return lambda **student: make_run(tmp_path / "out", student=student, loop={"max_steps": 1})


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that planted code writes."""
    return tmp_path / "marker"


@pytest.fixture
def plant(tmp_path: Path, marker: Path, monkeypatch) -> Plant:
    """``plant(model_type)``: a student's folder whose configuration, model and tokenizer point to code in it."""
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115

    def write(model_type: str, tokenizer: bool = True) -> Path:
        folder = write_student(tmp_path / f"student-{model_type}")
        classes = {"AutoConfig": "planted.PlantedConfig", "AutoModelForCausalLM": "planted.PlantedModel"}
        _change(folder / "config.json", model_type=model_type, auto_map=classes)
        (folder / "planted.py").write_text(PLANTED.format(marker=str(marker)))
        if tokenizer:
            tiny_tokenizer().save_pretrained(folder)
            own = {"AutoTokenizer": [None, "planted.PlantedTokenizer"]}
            _change(folder / "tokenizer_config.json", tokenizer_class="PlantedTokenizer", auto_map=own)
        return folder

    return write


def _change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(action: Callable[[], object], message: str) -> None:
    """``action`` raises one line within a second of processor time, and asks nobody."""
    start = time.process_time()
    with pytest.raises(UserError, match=message):
        action()
    assert time.process_time() - start < 1


WAYS = {
    "checkpoint": {},
    "config": {"checkpoint": None, "config": "FOLDER"},
    "teacher": {"checkpoint": None, "teacher": "FOLDER", "from_layers": [0]},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_student_of_an_unknown_class(make_config, plant: Plant, marker: Path, way: str) -> None:
    """A student's folder asks to run the Python file beside it, with an answer of yes waiting on standard input."""
    folder = plant("planted", tokenizer=False)
    student = {"checkpoint": str(folder), **{k: str(folder) if v == "FOLDER" else v for k, v in WAYS[way].items()}}
    config = make_config(**student)
    key = "student" if way == "checkpoint" else f"student.{way}"
    refused(lambda: distill(config), rf"^{key}: .*would run code of its own .* set student\.trust_remote_code: true")
    assert not marker.exists()
    trusting = config.model_copy(update={"student": config.student.model_copy(update={"trust_remote_code": True})})
    load_student(materialise_student(trusting), trusting.student)
    assert marker.read_text() == "ran", "the test would notice code that runs"


def test_a_student_of_a_known_class_trains_without_its_code(make_config, plant: Plant, marker: Path) -> None:
    """A folder of a class that transformers has adds code of its own to it."""
    folder = plant("llama", tokenizer=False)
    config = make_config(checkpoint=str(folder))
    assert distill(config)["steps"] == 1
    assert evaluate_folder(str(folder), config.data.shares[0].url)["kl"] > 0
    assert not marker.exists()
    assert not list(Path(config.output).rglob("*.py")), "nor is it passed on"


def test_a_tokenizer(small_cache: Path, plant: Plant, marker: Path) -> None:
    """A tokenizer of an unknown class asks to run code, in a run, an evaluation, and a search for caches."""
    folder = plant("planted")
    ours = read_manifest(Storage(str(small_cache))).model_copy(
        update={"tokenizer": describe_tokenizer(tiny_tokenizer())}
    )
    refused(lambda: check_tokenizer(ours, folder, "c"), "would run code of its own .* set student.trust_remote_code")
    refused(lambda: check_tokenizer(ours, folder, "c", "MODEL"), "would run code of its own .* add --trust-remote-code")
    refused(lambda: tokenizer_fingerprint(str(folder)), "no tokenizer can be loaded from there")
    assert not marker.exists()
    check_tokenizer(ours, folder, "c", trust_remote_code=True)
    assert marker.exists()


def test_a_teacher(plant: Plant, marker: Path) -> None:
    """A teacher's folder asks to run code when it is planned with."""
    config = TeacherConfig(path=str(plant("planted")))
    for load in (load_teacher_config, load_teacher_tokenizer):
        refused(lambda load=load: load(config), r"would run code of its own .* set teacher\.trust_remote_code: true")
    assert not marker.exists()


def test_an_answer_on_standard_input_does_not_enable_code(
    make_config, tmp_path: Path, plant: Plant, marker: Path, small_cache: Path
) -> None:
    """A script pipes a hundred times yes into the command."""
    folder = plant("planted", tokenizer=False)
    config = tmp_path / "train.yaml"
    config.write_text(make_config(checkpoint=str(folder)).model_dump_json())
    for arguments in (["run", str(config)], ["init", str(config)], ["evaluate", str(folder), str(small_cache)]):
        done = CliRunner().invoke(main, arguments, input="y\n" * 100)
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
        assert "would run code of its own" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not done.stdout
    assert not marker.exists()


@pytest.mark.parametrize("name", ["runs/studnet", "./studnet", "studnet", "owner/model", "~/studnet", "/nowhere"])
def test_a_mistyped_path_is_sent_nowhere(make_config, tmp_path: Path, monkeypatch, name: str) -> None:
    """A path that is not there looks like the name of a model on a hub, and a hub would answer."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    sent: list[Any] = []
    monkeypatch.setattr("socket.socket.connect", lambda *where: sent.append(where) or 1 / 0)
    monkeypatch.setattr("socket.getaddrinfo", lambda *where, **_: sent.append(where) or 1 / 0)
    for start in ({}, {"checkpoint": None, "config": name}, {"checkpoint": None, "teacher": name, "from_layers": [0]}):
        config = make_config(**{"checkpoint": name, **start})
        refused(lambda config=config: materialise_student(config), r"no such folder.*pass the folder of a Hugging")
    refused(lambda: evaluate_folder(name, config.data.shares[0].url), "^MODEL: .*no such folder")
    assert not sent


def test_a_mistyped_path_of_a_teacher_is_sent_nowhere(tmp_path: Path, monkeypatch) -> None:
    """The same for a teacher, which may be the name of a model on a hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    sent: list[Any] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *where, **_: sent.append(where) or 1 / 0)
    for name in ("runs/techer", "./techer", "a/b/c", "/nowhere"):
        refused(lambda name=name: load_teacher_config(TeacherConfig(path=name)), "no such folder")
    assert not sent


def test_an_adapter_is_refused_by_name(make_config, plant: Plant) -> None:
    """A folder names another model, on a hub, that it is to be laid upon."""
    folder = plant("llama", tokenizer=False)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/elsewhere"}')
    with pytest.raises(UserError, match=r"contains an adapter \(adapter_config.json\) for another model; merge it"):
        materialise_student(make_config(checkpoint=str(folder)))
    shutil.rmtree(folder)


def test_every_loader_of_models_says_whether_it_trusts_code() -> None:
    """A new call that leaves it open would have transformers ask."""
    found = []
    for package in ("teacher_cache", "trainer", "tools"):
        for path in sorted((Path(__file__).parents[2] / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                name = getattr(getattr(node, "func", None), "attr", None)
                owner = getattr(getattr(getattr(node, "func", None), "value", None), "id", None)
                if owner == "GenerationConfig":  # plain JSON, which names no code
                    continue
                if isinstance(node, ast.Call) and name in ("from_pretrained", "from_config"):
                    found.append(path)
                    keywords = [keyword.arg for keyword in node.keywords]
                    assert "trust_remote_code" in keywords, f"{path}:{node.lineno}"
    assert len(found) >= 6
