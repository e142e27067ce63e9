"""Training on hidden states and attention rows, from a cache that the reference engine wrote."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from schemas.cache_config import CacheConfig, CaptureConfig
from schemas.errors import UserError
from schemas.load import validate
from schemas.train_config import LossConfig, TrainConfig
from support.logged import read_metrics
from support.models import tiny_config, write_random_teacher, write_text_corpus
from support.tensor_memory import TensorMemory
from support.workspace import cache_tree
from teacher_cache.job import run
from trainer.data.batches import to_tensors
from trainer.data.open_caches import open_cache
from trainer.data.readable import Cache
from trainer.distiller import distill
from trainer.losses.apc import CHUNK_WEIGHTS
from trainer.losses.objective import Objective
from trainer.student.forward import masked_hidden

ALL = {"lhsm": {}, "apc": {}, "asr": {}}
SIGNALS = ("tokens", "logits", "hidden", "attention")


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights large enough for layers to change the residual stream, and for heads to be focused."""
    shape = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    folder = write_random_teacher(tmp_path_factory.mktemp("teacher"), **shape)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def full_cache(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("full")
    corpus = write_text_corpus(folder / "corpus")
    capture = {
        "logits": {"k": 16},
        "draws": None,
        "hidden": {"layers": [0.25, 0.5, 3]},
        "attention": {"heads": 2, "keys": 12},
    }
    sizes = {"max_tokens": 40, "tokens_per_shard": 300}
    tree = cache_tree(teacher_folder, corpus, folder / "cache", capture=capture, **sizes)
    run(validate(CacheConfig, tree, "test"))
    return str(folder / "cache")


@pytest.fixture
def configure(full_cache: str, teacher_folder: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(losses: dict[str, Any], output: str = "out", **loop: Any) -> TrainConfig:
        tree = {
            "data": {"cache": full_cache},
            "student": {"teacher": str(teacher_folder), "from_layers": [0, 3]},
            "losses": losses,
            "optimizer": {"lr": 1e-3},
            "loop": {"max_steps": 6, "micro_batch_size": 2, "gradient_accumulation": 2, "save_every": 3} | loop,
            "output": str(tmp_path / output),
        }
        return TrainConfig.model_validate(tree)

    return make


def means(cache: Cache, folder: Path, losses: dict[str, Any], rows: list[list[int]], packed: bool) -> dict[str, float]:
    """Mean of each term of the model in ``folder`` over these rows of the cache."""
    student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    objective = attached(student, losses, cache.manifest)
    batch = to_tensors(cache.read_rows(rows), packed)
    with objective.recording() as recorded, torch.no_grad():
        masked_hidden(student, batch)
        terms = objective.feature_terms(recorded, batch, progress=1.0)
    counts = dict(zip(objective.rows, objective.row_counts(batch).tolist(), strict=True))
    assert counts["hidden"] > 10
    assert counts["attention"] > 1
    return {term.name: term.total.item() / counts[term.rows] for term in terms}


def attached(student: Any, losses: dict[str, Any], manifest: Any) -> Objective:
    objective = Objective(LossConfig.model_validate(losses), manifest.capture)
    objective.attach(student, manifest, seed=0)
    return objective


@pytest.mark.parametrize(("rows", "packed"), [([[0], [3], [5]], False), ([[0, 3], [5, 1, 2]], True)])
def test_the_teacher_as_its_own_student_has_nothing_to_learn(
    full_cache: str, teacher_folder: Path, rows: list[list[int]], packed: bool
) -> None:
    """So layers, heads, rows, columns and keys are matched as they should be, in padded and in packed rows."""
    cache = open_cache(full_cache, SIGNALS)
    found = means(cache, teacher_folder, ALL, rows, packed)
    assert found["lhsm"] < 1e-3
    assert abs(found["apc"]) < 1e-3
    wrong_layers = {"pairs": [{"teacher": 1, "student": 2}, {"teacher": 2, "student": 3}]}
    wrong = means(cache, teacher_folder, {"lhsm": wrong_layers, "apc": {"student_layer": 1}}, rows, packed)
    assert wrong["lhsm"] > 0.01
    assert wrong["apc"] > 0.01


def test_fixed_heads_replace_the_most_focused_ones(full_cache: str, teacher_folder: Path) -> None:
    cache: Any = open_cache(full_cache, SIGNALS)
    sample = cache.read_attention(3)
    right = {"lhsm": {}, "apc": {"student_heads": sample.heads.tolist()}}
    assert abs(means(cache, teacher_folder, right, [[3], [3]], False)["apc"]) < 1e-3
    others = [head for head in range(4) if head not in sample.heads]
    assert means(cache, teacher_folder, {"lhsm": {}, "apc": {"student_heads": others}}, [[3], [3]], False)["apc"] > 0.01


def test_all_four_losses_train_and_are_logged(configure) -> None:
    config = configure(ALL, max_steps=40, save_every=40, log_gradient_norms=True)
    summary = distill(config)
    assert summary["ended"] == "completed"
    records = read_metrics(config.output, "loss")
    for record in records:
        progress = (record["step"] - 1) / 40
        assert record["lhsm_weight"] == pytest.approx(0.8)
        assert record["apc_weight"] == pytest.approx(max(0.0, 0.5 * (progress - 0.2) / 0.8))
        assert record["asr_weight"] == pytest.approx(1e-3)
        parts = [record[f"{name}_weighted"] for name in ("tla", "lhsm", "apc", "asr")]
        assert record["loss"] == pytest.approx(sum(parts), rel=1e-5)
        assert record["asr_weighted"] == pytest.approx(1e-3 * record["asr"], rel=1e-5)
        assert record["lhsm_gradient_norm"] > 0
        assert (record["apc_gradient_norm"] > 0) == (record["apc_weight"] > 0)
    assert records[0]["lhsm_map_norm_0"] == pytest.approx(1.0)
    for name in ("lhsm", "tla"):
        first, last = (np.mean([record[name] for record in part]) for part in (records[:8], records[-8:]))
        assert last < first, name
    output = Path(config.output)
    assert not [name for name in load_file(output / "final/model.safetensors") if "map" in name]
    assert [name for name in load_file(output / "checkpoint-40/model.safetensors") if "distillation_maps" in name]
    card = (output / "final/README.md").read_text()
    assert "LHSM" in card
    assert "APC" in card


def test_resuming_continues_maps_and_losses(configure) -> None:
    whole, cut = configure(ALL, "whole"), configure(ALL, "cut", max_steps=6)
    distill(whole)
    distill(cut)
    shutil.rmtree(Path(cut.output) / "checkpoint-6")
    shutil.rmtree(Path(cut.output) / "final")
    distill(cut)
    for one, other in zip(read_metrics(whole.output, "loss"), read_metrics(cut.output, "loss"), strict=True):
        for name in ("loss", "lhsm", "apc", "asr", "lhsm_map_norm_2"):
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-7), (name, one["step"])


def test_accumulated_micro_batches_equal_one_batch(configure) -> None:
    small = configure(ALL, "small", max_steps=1, micro_batch_size=1, gradient_accumulation=4)
    large = configure(ALL, "large", max_steps=1, micro_batch_size=4, gradient_accumulation=1)
    distill(small)
    distill(large)
    one, other = read_metrics(small.output, "loss")[0], read_metrics(large.output, "loss")[0]
    for name in ("loss", "tla", "lhsm", "apc", "asr", "grad_norm"):
        assert one[name] == pytest.approx(other[name], rel=1e-4), name


def test_gradient_checkpointing_changes_nothing(configure) -> None:
    plain, checkpointed = configure(ALL, "plain"), configure(ALL, "checkpointed", gradient_checkpointing=True)
    distill(plain)
    distill(checkpointed)
    for one, other in zip(read_metrics(plain.output, "loss"), read_metrics(checkpointed.output, "loss"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_only_the_files_of_needed_signals_are_touched(configure, full_cache: str, tmp_path: Path) -> None:
    copy = shutil.copytree(full_cache, tmp_path / "copy")
    for path in [*copy.glob("*.hidden.tar"), *copy.glob("*.attention.tar")]:
        path.unlink()
    config = configure({}, max_steps=1)
    distill(config.model_copy(update={"data": config.data.model_copy(update={"cache": str(copy)})}))


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"lhsm": {"pairs": [{"teacher": 4, "student": 1}]}}, r"teacher layer 4 is not in the cache, which stores"),
        ({"lhsm": {"pairs": [{"teacher": 1, "student": 3}]}}, r"student layer 3 does not exist"),
        ({"apc": {"student_layer": 3}}, r"student layer 3 does not exist"),
        ({"apc": {"student_heads": [0]}}, r"student_heads: \[0\]: the cache stores 2 attention heads"),
        ({"apc": {"student_heads": [0, 4]}}, r"student_heads: \[0, 4\]"),
    ],
)
def test_incompatible_students_and_caches_are_refused(configure, losses: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distill(configure(losses))


@pytest.mark.parametrize("name", ["lhsm", "apc"])
def test_a_cache_without_the_signal_is_refused(make_config, name: str) -> None:
    with pytest.raises(UserError, match=r"the cache has no (hidden|attention) signal; cache the teacher with"):
        distill(make_config(losses={name: {}}))


def test_a_batch_without_stored_rows_has_loss_zero(full_cache: str, teacher_folder: Path) -> None:
    cache = open_cache(full_cache, SIGNALS)
    student = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    objective = attached(student, ALL, cache.manifest)
    batch = to_tensors(cache.read_rows([[0], [1]]), packed=False)
    batch = {
        name: tensor[:0] if name.startswith(("hidden_", "attention_")) and name != "attention_mask" else tensor
        for name, tensor in batch.items()
    }
    with objective.recording() as recorded:
        masked_hidden(student, batch)
    totals = {term.name: term.total.item() for term in objective.feature_terms(recorded, batch, progress=0.0)}
    assert totals["lhsm"] == totals["apc"] == 0
    assert objective.row_counts(batch).tolist()[2:] == [0, 0]
    assert np.isfinite(totals["asr"])


def test_memory_of_attention_rows_does_not_grow_with_rows_times_keys() -> None:
    """8,192 tokens, 512 stored rows, 8 attention heads: a float32 tensor of all weights has 134 MB, a chunk's 17."""
    torch.manual_seed(0)
    student = LlamaForCausalLM(tiny_config(num_hidden_layers=1, num_attention_heads=8, max_position_embeddings=8192))
    capture = CaptureConfig.model_validate({"attention": {"heads": 2, "keys": 4}})
    manifest: Any = SimpleNamespace(capture=capture, teacher=SimpleNamespace(num_layers=1))
    objective = attached(student, {"apc": {}}, manifest)
    column = torch.arange(15, 8192, 16)
    none = torch.zeros_like(column)
    batch = {"batch_row": none, "column": column, "first_column": none, "sample": none}
    batch |= {"weights": torch.full((512, 2, 4), 0.2), "keys": torch.arange(4).expand(512, 2, 4)}
    with objective.recording() as recorded:
        student.model(torch.randint(3, 300, (1, 8192)), use_cache=False)
    with TensorMemory() as memory:
        (term,) = objective.feature_terms(recorded, {f"attention_{name}": part for name, part in batch.items()}, 1.0)
        term.total.backward()
    gradient = student.model.layers[0].self_attn.q_proj.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    assert memory.largest <= 4 * CHUNK_WEIGHTS["cpu"]
    assert memory.peak < 200e6


def test_all_terms_and_gradients_with_varlen_attention_are_those_of_sdpa(configure) -> None:
    """Packed rows, with gradient checkpointing: places of features in the row without padding, too."""
    seen = []
    for attention in ("sdpa", "varlen"):
        config = configure(ALL, output=attention, gradient_checkpointing=True, max_steps=3, micro_batch_size=1)
        data = config.data.model_copy(update={"packing": True, "pack_tokens": 90})
        student = config.student.model_copy(update={"attention": attention})
        config = config.model_copy(update={"data": data, "student": student})
        distill(config)
        saved = json.loads((Path(config.output) / "final" / "config.json").read_text())
        assert "varlen" not in json.dumps(saved), "the final model loads without this project"
        names = ("tla", "lhsm", "apc", "asr", "grad_norm")
        seen.append([[record[name] for name in names] for record in read_metrics(config.output, "loss")])
    np.testing.assert_allclose(*seen, rtol=1e-4)
