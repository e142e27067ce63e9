"""Every command line and every block of Python and YAML in the documents: run in a small workspace, or at least parsed.

A document's blocks run one after the other in a folder that has what they name: a tiny teacher, its cache, a student.
What needs a GPU, a cluster or a long time has ``<!-- not run: why -->`` before it and is only parsed.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import fsspec
import pytest
import yaml

from schemas.cache_config import CacheConfig
from schemas.curate_config import CurateConfig
from schemas.errors import UserError
from schemas.generate_config import GenerateConfig
from schemas.load import validate
from schemas.matrix_config import MatrixConfig
from schemas.rounds_config import RoundsConfig
from schemas.train_config import DataConfig, LossConfig, TrainConfig
from support.command_lines import check, programs
from support.commands import MODULES, Forked, environment, finish
from support.markdown_pages import DOCUMENTS, ROOT, Block, blocks, inline_code
from support.models import write_random_teacher, write_text_corpus

SHARING = ROOT / "docs/sharing.md"
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
COMMANDS = [(block, line) for block in BLOCKS for line in block.commands]
RUN = [
    document
    for document in DOCUMENTS
    if document != SHARING and any(b.is_run and b.language in ("console", "python") for b in blocks(document))
]
SMALL = {  # what makes a configuration of the documents one for a tiny teacher on a CPU
    "teacher": {"dtype": "float32"},
    "engine": {"kind": "transformers", "device": "cpu"},
    "corpus": {"max_tokens": 64},
    "output": {"tokens_per_shard": 400},
}

SMALL_GENERATION = {
    "generator": {"dtype": "float32"},
    "engine": {"kind": "transformers", "device": "cpu"},
    "sampling": {"max_new_tokens": 4},
}
SMALL_ROUNDS = {"generate": SMALL_GENERATION, "score": {"engine": SMALL["engine"]}}


class Place:
    """A folder in which a reader types commands, with a home folder of its own."""

    def __init__(self, folder: Path, bucket: str) -> None:
        self.folder = folder
        self.bucket = bucket
        (folder / "home").mkdir(parents=True, exist_ok=True)
        self.environment = {**environment(), "HOME": str(folder / "home")}

    def run(self, block: Block) -> None:
        if block.language == "console":
            for line in block.commands:
                self.type(line)
        elif block.language == "python":
            self.execute(block)
        elif block.title:
            tree = yaml.safe_load(block.text)
            of_a_model = {"teacher", "generator", "rounds"} & tree.keys()
            (self.folder / block.title).write_text(yaml.safe_dump(small(tree) if of_a_model else tree))

    def type(self, line: str) -> None:
        for words in programs(line.replace("s3://bucket", self.bucket)):
            if words[0] == "source":
                continue
            assert words[0] in MODULES, f"{line}: mark what is not run"
            done = finish(Forked(*words, env=self.environment, cwd=self.folder))
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"

    def execute(self, block: Block) -> None:
        source = block.text.replace("s3://bucket", self.bucket)
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()):
            exec(compile(source, block.place, "exec"), {})


def small(tree: dict[str, Any]) -> dict[str, Any]:
    changes = SMALL if "teacher" in tree else SMALL_ROUNDS if "rounds" in tree else SMALL_GENERATION
    return tree | {name: tree.get(name, {}) | values for name, values in changes.items()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the documents name: configurations, a teacher and its corpus, two caches, a student."""
    folder = tmp_path_factory.mktemp("prepared")
    write_random_teacher(folder / "runs/demo/teacher")
    for name in ("runs/demo", "runs/ours"):
        write_text_corpus(folder / name / "corpus/code", documents=8, seed=len(name))
        for path in (folder / name / "corpus/code").iterdir():
            path.rename(path.with_suffix(".py"))
        (folder / name / "corpus/chats.jsonl").write_text(json.dumps({"messages": _chat(len(name))}) + "\n")
    shutil.copytree(folder / "runs/demo/teacher", folder / "models/teacher")
    (folder / "data").mkdir()
    chats = [
        [{"role": "user", "content": f"def f{i}"}, {"role": "assistant", "content": f"x + {i}"}] for i in range(40)
    ]
    (folder / "data/chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (folder / "data/problems.jsonl").write_text(json.dumps({"prompt": "Add one to x."}) + "\n")
    cache = small(yaml.safe_load((ROOT / "configs/demo-cache.yaml").read_text()))
    cache["capture"] |= {"draws": {"n": 4}, "hidden": {"layers": [1]}}
    train = yaml.safe_load((ROOT / "configs/demo-train.yaml").read_text())
    train["student"]["from_layers"] = [0]
    train["loop"] |= {"max_steps": 2, "log_every": 1}
    (folder / "configs").mkdir()
    shutil.copy(ROOT / "configs/four-nodes-s3-cache.yaml", folder / "configs")
    (folder / "configs/demo-cache.yaml").write_text(yaml.safe_dump(cache))
    (folder / "configs/demo-train.yaml").write_text(yaml.safe_dump(train))
    place = Place(folder, "s3://none")
    place.type("teacher-cache run configs/demo-cache.yaml")
    place.type("train-student run configs/demo-train.yaml")
    shutil.copytree(folder / "runs/demo/student/final", folder / "models/student")
    ours = [f"--set corpus.sources.{i}.path=runs/ours/corpus/{name}" for i, name in enumerate(("code", "chats.jsonl"))]
    ours += ["--set output.path=runs/ours/cache", "--set capture.hidden=null"]
    place.type(" ".join(["teacher-cache run configs/demo-cache.yaml", *ours]))
    return folder


def _chat(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"def f{number}"}, {"role": "assistant", "content": f"return x + {number}"}]


@pytest.fixture
def make_place(prepared: Path, s3_url: str, tmp_path: Path) -> Callable[[str], Place]:
    def make(name: str) -> Place:
        shutil.copytree(prepared, tmp_path / name)
        return Place(tmp_path / name, s3_url)

    return make


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", RUN, ids=_name)
def test_snippets_of_documents_run(document: Path, make_place: Callable[[str], Place]) -> None:
    place = make_place("place")
    if "cache-tools push" not in document.read_text(encoding="utf-8"):
        fsspec.filesystem("s3").put(f"{place.folder}/runs/demo/cache/", f"{place.bucket}/caches/demo/", recursive=True)
    for block in blocks(document):
        if block.is_run:
            place.run(block)


def test_two_teams_share_caches(make_place: Callable[[str], Place]) -> None:
    first, second = make_place("first"), make_place("second")
    for made in ("cache", "student"):
        shutil.rmtree(second.folder / "runs/demo" / made)
    for block in blocks(SHARING):
        assert block.note in ("team A", "team B"), block.place
        if block.note == "team B":
            shutil.copy(first.folder / "team-a.key.pub", second.folder)
        (first if block.note == "team A" else second).run(block)
    found = {path.name for path in (second.folder / "caches/demo").iterdir()}
    assert "shard-000000.logits.tar" in found
    assert "shard-000000.hidden.tar" not in found
    assert (second.folder / "demo.html").read_text().startswith("<!doctype html>")
    assert (second.folder / "runs/demo/student/final/model.safetensors").exists()


def _place(value: object) -> str | None:
    return value.place if isinstance(value, Block) else None


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=_place)
def test_programs_options_and_settings_of_a_command_exist(block: Block, line: str) -> None:
    check(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_commands_within_the_text_exist(document: Path) -> None:
    for code in inline_code(document):
        if code.partition(" ")[0] in MODULES and " " in code and "…" not in code:
            check(code, whole=False)
        elif code.startswith("make "):
            programs(code)


@pytest.mark.parametrize(
    "line",
    [
        "cache-tools verifies caches/demo",
        "cache-tools verify caches/demo --fast",
        "cache-tools verify caches/demo caches/other",
        "cache-tools pull caches/demo",
        "train-student run configs/demo-train.yaml --set loop.steps=3",
        "teacher-cache run configs/demo-cache.yaml --worker",
        "python -m benchmarks.nothing",
        "python nothing.py",
        "pip install '.[nothing]'",
        "pip install dist/offline_distillation-0.0.9-py3-none-any.whl",
        "rm -rf /",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises((click.UsageError, UserError, AssertionError)):
        check(line)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=_place)
def test_settings_are_valid(block: Block) -> None:
    tree = yaml.safe_load(block.text)
    fragments(tree)


CACHE = {"teacher": {"path": "teacher"}, "corpus": {"sources": [{"path": "data"}]}, "output": {"path": "cache"}}
GENERATE = {
    "generator": {"path": "teacher"},
    "prompts": {"sources": [{"path": "data", "layer": "reasoning"}]},
    "output": {"path": "replies"},
}
CURATE = {
    "input": {"sources": [{"path": "data"}]},
    "tokenizer": {"path": "teacher"},
    "steps": [{"step": "mix", "shares": {"base": 1}, "on_deficit": "shrink"}],
    "output": {"path": "curated"},
}
MATRIX = {
    "models": [{"name": "student", "folder": "student"}],
    "tasks": [{"kind": "latency", "name": "speed"}],
    "output": "runs/matrix",
}
TRAIN = {"data": {"cache": "cache"}, "student": {"checkpoint": "student"}, "output": "runs/student"}


def fragments(tree: dict[str, Any]) -> None:
    """Validate part of a configuration, whichever it is of. Raises UserError."""
    rest = tree.keys() - {"output"}
    if "plugins" in tree:
        of_axolotl(tree)
    elif "rounds" in tree:
        validate(RoundsConfig, tree, "the document")
    elif {"models", "tasks", "backends", "pairs"} & rest:
        validate(MatrixConfig, MATRIX | tree, "the document")
    elif {"generator", "prompts", "sampling"} & rest:
        validate(GenerateConfig, GENERATE | tree, "the document")
    elif {"input", "steps"} & rest:
        validate(CurateConfig, CURATE | tree, "the document")
    elif rest <= CacheConfig.model_fields.keys():
        validate(CacheConfig, CACHE | tree, "the document")
    else:
        validate(TrainConfig, TRAIN | tree, "the document")


def of_axolotl(tree: dict[str, Any]) -> None:
    """Validate what is ours in a configuration of axolotl. Raises UserError."""
    for name in tree["plugins"]:
        module, _, plugin = name.rpartition(".")
        assert hasattr(import_module(module), plugin)
    data = dict(tree["distillation"])
    validate(LossConfig, data.pop("losses"), "the document")
    validate(DataConfig, data, "the document")


@pytest.mark.parametrize("tree", [{"capture": {"logit": {}}}, {"losses": {"tlas": {}}}, {"capture": {}, "loop": {}}])
def test_a_setting_that_does_not_exist_is_found(tree: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        fragments(tree)


def test_python_that_is_not_run_compiles() -> None:
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, block.place, "exec")
