"""Checks before the first step, and repaired generation settings."""

import json
import logging
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from schemas.errors import FullError, UserError
from schemas.train_config import StudentConfig
from support.models import tiny_tokenizer
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import Storage
from teacher_cache.tokenizer import describe_tokenizer
from trainer.distiller import distill
from trainer.evaluate import evaluate_folder
from trainer.student.build import load_model
from trainer.student.preflight import check_saving

VOCABULARY = 61


def copied(student_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(student_folder, tmp_path / "student")


def started(output: Path) -> bool:
    """Whether the run took a step."""
    metrics = output / "metrics.jsonl"
    return bool(list(output.glob("checkpoint-*"))) or (metrics.exists() and metrics.stat().st_size > 0)


@pytest.mark.parametrize("way", ["checkpoint", "teacher"])
def test_generation_flags_without_effect_are_unset(make_config, student_folder, tmp_path, caplog, way: str) -> None:
    folder = copied(student_folder, tmp_path)
    flags = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "length_penalty": 2.0, "max_length": 77}
    (folder / "generation_config.json").write_text(json.dumps(flags))
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "elsewhere")
    start = {"checkpoint": str(folder)} if way == "checkpoint" else {"teacher": str(folder), "from_layers": [0]}
    config = make_config(student={"checkpoint": None, **start}, loop={"max_steps": 2, "save_every": 1})
    with caplog.at_level(logging.WARNING):
        assert distill(config)["steps"] == 2
    assert "generation_config.json sets temperature, top_p, length_penalty, which have no effect" in caplog.text
    kept = GenerationConfig.from_pretrained(Path(config.output) / "final")
    assert (kept.do_sample, kept.max_length) == (False, 77)
    assert (kept.temperature, kept.top_p, kept.length_penalty) == (None, None, None)
    ids = {"input_ids": torch.tensor([[3, 4, 5]]), "max_new_tokens": 5, "max_length": None}
    one, other = (LlamaForCausalLM.from_pretrained(Path(config.output) / "final") for _ in range(2))
    other.generation_config = GenerationConfig.from_pretrained(folder)
    assert torch.equal(one.generate(**ids), other.generate(**ids))


def test_contradictory_generation_settings_are_refused(make_config, student_folder, tmp_path) -> None:
    folder = copied(student_folder, tmp_path)
    (folder / "generation_config.json").write_text('{"num_return_sequences": 3}')
    config = make_config(student={"checkpoint": str(folder)})
    with pytest.raises(UserError, match="cannot load the model: Greedy methods"):
        distill(config)
    assert not started(Path(config.output))


def test_a_student_that_cannot_be_saved_is_refused(make_config, student_folder, monkeypatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("some parameters are set\nwhere they should not be")

    monkeypatch.setattr("transformers.LlamaConfig.save_pretrained", fail)
    config = make_config()
    with pytest.raises(UserError, match=r"^student: .*: cannot be saved again: some parameters are set where"):
        distill(config)
    assert not started(Path(config.output))
    assert not list(Path(config.output).glob(".tmp-*"))


def long_cache(folder: Path, longest: int) -> Path:
    shards = random_shards([[5, longest, 9, 8], [7, 6, 5, 4]], VOCABULARY)
    write_cache(str(folder), shards, VOCABULARY)
    return folder


def learned(kind: str, positions: int) -> Any:
    shape = {"vocab_size": VOCABULARY, "num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": 32}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**shape, n_positions=positions))
    return OPTForCausalLM(OPTConfig(**shape, max_position_embeddings=positions, ffn_dim=32, word_embed_proj_dim=32))


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_learned_positions(make_config, tmp_path: Path, kind: str) -> None:
    cache = long_cache(tmp_path / "cache", 33)
    for positions in (32, 33):
        folder = tmp_path / f"{kind}-{positions}"
        learned(kind, positions).save_pretrained(folder)
        config = make_config(
            student={"checkpoint": str(folder)}, data={"cache": str(cache)}, output=str(tmp_path / f"out-{positions}")
        )
        if positions == 33:
            assert distill(config)["steps"] == 6
            assert evaluate_folder(str(folder), str(cache))["kl"] > 0
            continue
        wanted = rf"a {kind} model with positions for 32 tokens, and a sample of .*cache has 33; choose a student with"
        with pytest.raises(UserError, match=f"^student: {wanted}"):
            distill(config)
        with pytest.raises(UserError, match=f"^MODEL: {wanted}"):
            evaluate_folder(str(folder), str(cache))
        data = {"cache": make_config().data.cache, "validation_cache": str(cache)}
        with pytest.raises(UserError, match=f"^student: {wanted}"):
            distill(config.model_copy(update={"data": config.data.model_copy(update=data)}))
        assert not started(Path(config.output))


def test_rotary_positions_beyond_the_configuration_are_warned_about(make_config, tmp_path: Path, caplog) -> None:
    cache = long_cache(tmp_path / "cache", 150)
    with caplog.at_level(logging.WARNING):
        distill(make_config(loop={"max_steps": 1}))
        assert "configured for up to" not in caplog.text
        distill(make_config(data={"cache": str(cache)}, loop={"max_steps": 1}, output=str(tmp_path / "long")))
    assert "student: configured for up to 128 tokens, and a sample of" in caplog.text
    assert "has 150" in caplog.text


def with_tokenizer(folder: Path) -> Path:
    """A student whose tokenizer has two chat templates."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}{{ messages }}"}
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=384, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cache_of(tokenizer: Any, folder: Path) -> Path:
    write_cache(str(folder), random_shards([[5, 6, 7, 8]] * 2, 384), 384)
    manifest = read_manifest(Storage(str(folder)))
    fitting = manifest.model_copy(update={"tokenizer": describe_tokenizer(tokenizer)})
    (folder / "manifest.json").write_text(fitting.to_json())
    return folder


def test_all_tokenizer_files_are_copied_unchanged(make_config, tmp_path: Path) -> None:
    folder = with_tokenizer(tmp_path / "student")
    assert (folder / "additional_chat_templates/tool_use.jinja").is_file()
    for name in ("vocab.txt", "spiece.model", "tekken.json", "source.spm", "bpe.codes", "added_tokens.json"):
        (folder / name).write_text("{}")
    (folder / "planted.py").write_text("raise SystemExit")
    cache = cache_of(AutoTokenizer.from_pretrained(folder), tmp_path / "cache")
    before = os.umask(0o022)
    try:
        config = make_config(student={"checkpoint": str(folder)}, data={"cache": str(cache)}, loop={"max_steps": 1})
        distill(config)
    finally:
        os.umask(before)
    final = Path(config.output) / "final"
    weights = {"config.json", "generation_config.json", "model.safetensors", "planted.py"}
    for path in (path for path in folder.rglob("*") if path.is_file() and path.name not in weights):
        assert (final / path.relative_to(folder)).read_bytes() == path.read_bytes(), path
    assert not (final / "planted.py").exists()
    assert AutoTokenizer.from_pretrained(final).chat_template == AutoTokenizer.from_pretrained(folder).chat_template
    for path in final.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_a_tokenizer_whose_copy_would_lack_a_file_is_refused(make_config, tmp_path: Path, monkeypatch) -> None:
    folder = with_tokenizer(tmp_path / "student")
    model = load_model(folder, "student", torch.float32)
    monkeypatch.setattr(
        "trainer.student.preflight.copy_tokenizer",
        lambda source, target, trust: shutil.copytree(
            source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("additional_chat_templates")
        ),
    )
    with pytest.raises(UserError, match="a copy of its tokenizer files has other chat templates"):
        check_saving(model, StudentConfig(checkpoint=str(folder)), folder, tmp_path / "out")


def permuted(folder: Path, target: Path) -> Path:
    """The same student with another tokenizer of the same size."""
    shutil.copytree(folder, target)
    settings = json.loads((target / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (target / "tokenizer.json").write_text(json.dumps(settings))
    return target


def in_hub_cache(folder: Path, hub: Path, name: str) -> None:
    """Lay a folder out as in the hub's cache: a snapshot of links to blobs."""
    snapshot = hub / f"models--owner--{name}" / "snapshots" / ("0" * 40)
    blobs = snapshot.parents[1] / "blobs"
    for path in (path for path in folder.rglob("*") if path.is_file()):
        link, blob = snapshot / path.relative_to(folder), blobs / f"{len(list(blobs.glob('*'))):040x}"
        for parent in (link.parent, blobs):
            parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)


def test_the_tokenizer_is_checked_for_every_kind_of_student(make_config, tmp_path: Path, monkeypatch) -> None:
    own = with_tokenizer(tmp_path / "own")
    other = permuted(own, tmp_path / "other")
    cache = cache_of(AutoTokenizer.from_pretrained(own), tmp_path / "cache")
    hub = tmp_path / "hub"
    for name, folder in (("own", own), ("other", other)):
        in_hub_cache(folder, hub, name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    (tmp_path / "link").symlink_to(other)
    snapshot = hub / "models--owner--other" / "snapshots" / ("0" * 40)
    for number, name in enumerate((str(own), "owner/own")):
        changes = {"data": {"cache": str(cache)}, "loop": {"max_steps": 1}, "output": str(tmp_path / f"out{number}")}
        assert distill(make_config(student={"checkpoint": name}, **changes))["steps"] == 1
        assert evaluate_folder(name, str(cache))["kl"] > 0
    refusal = r"the student's tokenizer \w{12}… is not the one the cache .*/cache was made with"
    for name in (str(other), "owner/other", str(tmp_path / "link"), str(snapshot)):
        for start in ({"checkpoint": name}, {"checkpoint": None, "teacher": name, "from_layers": [0]}):
            changes = {"data": {"cache": str(cache)}, "output": str(tmp_path / "refused")}
            with pytest.raises(UserError, match=refusal):
                distill(make_config(student=start, **changes))
            shutil.rmtree(tmp_path / "refused", ignore_errors=True)
        with pytest.raises(UserError, match=refusal):
            evaluate_folder(name, str(cache))


def test_an_output_that_is_a_file(make_config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file/below/it"):
        with pytest.raises(UserError, match=r"^output: .*/file: is a file, wanted a folder; choose another path$"):
            distill(make_config(output=str(output)))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_without_room(make_config, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    config = make_config()
    parameters = 2 * 61 * 32 + 2 * (32 * 32 * 3 + 32 * 48 * 3 + 64) + 32
    needed = parameters * (4 + 8 + 4)
    monkeypatch.setattr("trainer.student.preflight.shutil.disk_usage", lambda folder: usage(1, 1, needed - 1))
    with pytest.raises(FullError, match=rf"^output: .*free; a checkpoint and the final model of {parameters:,}"):
        distill(config)
    assert not started(Path(config.output))
    monkeypatch.setattr("trainer.student.preflight.shutil.disk_usage", lambda folder: usage(1, 1, needed))
    assert distill(config)["steps"] == 6
