"""Which form of target is learned from, and the runs that learn from each; the reference engine writes the caches."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.cache_config import BEST_TARGET, CacheConfig, CaptureConfig
from schemas.errors import CorruptCacheError, UserError
from schemas.load import validate
from schemas.train_config import LossConfig, TlaConfig, TrainConfig
from support.logged import read_metrics
from support.models import write_random_teacher, write_text_corpus
from support.reference_rows import dense_kl
from support.workspace import cache_tree
from teacher_cache.job import run
from tools.checking.verify import verify
from trainer.data.alignment import check_covered
from trainer.data.batches import to_tensors
from trainer.data.open_caches import open_cache
from trainer.data.validation_data import evaluation_signals
from trainer.distiller import distill
from trainer.evaluate import evaluate, evaluate_folder
from trainer.losses.objective import Objective
from trainer.losses.target_form import target_form
from trainer.losses.teacher_rows import teacher_rows
from trainer.losses.token_map import TokenMap
from trainer.student.forward import masked_hidden, output_head

CAPTURES: dict[str, dict[str, Any]] = {
    "top_k": {"logits": {"k": 16}, "draws": None},
    "head and tail": {"logits": {"k": 16}, "draws": {"n": 6, "temperatures": [1.0, 3.0]}},
    "sampled": {"logits": {"k": 1}, "draws": {"n": 40, "region": "all"}},
    "dense": {"logits": {"k": 16}, "final": {}},
    "everything": {"logits": {"k": 16, "positions": "all"}, "draws": {}, "final": {"positions": "all"}},
}


def capture(name: str) -> CaptureConfig:
    return BEST_TARGET if name == "default" else CaptureConfig.model_validate(CAPTURES[name])


def tla(**keys: Any) -> TlaConfig:
    return TlaConfig.model_validate(keys)


def test_the_richest_target_is_the_default() -> None:
    forms = {name: target_form(tla(), capture(name)) for name in CAPTURES}
    expected = ("top_k", "draws", "draws", "final", "final")
    assert forms == dict(zip(CAPTURES, expected, strict=True))
    for form in ("top_k", "draws", "final"):
        assert target_form(tla(target=form), capture("everything")) == form


@pytest.mark.parametrize(
    ("keys", "name", "message"),
    [
        ({"target": "draws"}, "top_k", r"losses\.tla\.target: draws: the cache has no draws signal"),
        ({"target": "final"}, "sampled", r"losses\.tla\.target: final: the cache has no final signal"),
        ({"temperature": 2.0}, "top_k", r"temperature: 2\.0 is not among \[1\.0, 3\.0\].* top_k target"),
        ({"temperature": 3.0}, "sampled", r"temperature: 3\.0 is not among \[1\.0\].* draws target.* capture\.draws"),
        ({"temperature": 3.0}, "default", r"or losses\.tla\.target: top_k, the 16 stored entries, or make a cache"),
        ({"divergence": "reverse"}, "default", r"use forward, or losses\.tla\.target: top_k, the 16 stored entries"),
        ({"tail": "ignore"}, "default", r"leave it out, or set losses\.tla\.target: top_k, the 16 stored entries"),
        ({"tail": "ignore"}, "dense", r"losses\.tla\.tail: ignore needs target: top_k, not final"),
        ({"divergence": "jsd"}, "sampled", r"losses\.tla\.divergence: jsd cannot be estimated from draws"),
    ],
)
def test_impossible_combinations_are_refused(keys: dict[str, Any], name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        target_form(tla(**keys), capture(name))


def test_a_dense_target_allows_any_temperature() -> None:
    assert target_form(tla(temperature=7.5), capture("dense")) == "final"


def test_only_the_signals_that_the_losses_need_are_read() -> None:
    def needed(name: str, **losses: Any) -> tuple[str, ...]:
        captured = capture(name).model_copy(update=signals)
        return Objective(LossConfig.model_validate(losses), captured).signals

    signals = vars(CaptureConfig.model_validate({"hidden": {}, "attention": {}}))
    signals = {key: signals[key] for key in ("hidden", "attention")}
    off = {"weight": {"start": 0, "end": 0}}
    hard = {"tla": off, "cross_entropy": {"weight": {"start": 1, "end": 1}}}
    assert needed("top_k") == ("tokens", "logits")
    assert needed("head and tail") == ("tokens", "logits", "draws")
    assert needed("sampled") == ("tokens", "draws")
    assert needed("dense") == ("tokens", "final")
    assert needed("dense", **hard) == ("tokens",)
    assert needed("everything", tla={"target": "top_k"}) == ("tokens", "logits")
    assert needed("top_k", lhsm={}) == ("tokens", "logits", "hidden")
    assert needed("top_k", lhsm=off, apc={}, asr={}) == ("tokens", "logits", "attention")
    assert evaluation_signals(capture("sampled")) == ("tokens", "logits")
    assert evaluation_signals(capture("dense")) == ("tokens", "logits", "final")


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def write(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The cache of one of CAPTURES, written when it is first asked for."""
    folder = tmp_path_factory.mktemp("caches")
    corpus = write_text_corpus(folder / "corpus")

    def cache(name: str) -> str:
        output = folder / name.replace(" ", "-")
        if not output.exists():
            sizes = {"max_tokens": 40, "tokens_per_shard": 300}
            tree = cache_tree(teacher_folder, corpus, output, capture=CAPTURES[name], **sizes)
            run(validate(CacheConfig, tree, "test"))
        return str(output)

    return cache


def train_config(cache: str, teacher: Path, output: Path, **changes: Any) -> TrainConfig:
    tree = {
        "data": {"cache": cache, "validation_fraction": 0.3},
        "student": {"teacher": str(teacher), "from_layers": [1]},
        "optimizer": {"lr": 3e-3},
        "loop": {"max_steps": 12, "micro_batch_size": 4, "save_every": 12, "validate_every": 12},
        "output": str(output),
        **changes,
    }
    return TrainConfig.model_validate(tree)


@pytest.mark.parametrize("name", CAPTURES)
def test_verify_finds_nothing_in_a_good_cache(write: Callable[[str], str], name: str) -> None:
    assert verify(write(name)).problems == []


@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize("packing", [False, True])
def test_each_form_teaches(
    write: Callable[[str], str],
    teacher_folder: Path,
    tmp_path: Path,
    name: str,
    packing: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "trainer")
    data = {"cache": write(name), "validation_fraction": 0.3, "packing": packing, "pack_tokens": 80}
    config = train_config(write(name), teacher_folder, tmp_path / "out", data=data)
    summary = distill(config)
    form = target_form(config.losses.tla, capture(name))
    states = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("checkpoint-*/distill_state.json")]
    assert {state["target"] for state in states} == {summary["target"]} == {form}
    assert f"from the cache's `{form}` target" in (tmp_path / "out/final/README.md").read_text()
    (line,) = [text for text in caplog.messages if "TLA target:" in text and "most informative" in text]
    assert f"TLA target: {form} (" in line
    assert ("twice as slow as top_k" in line) == (form == "final")
    before = evaluate_folder(str(tmp_path / "out/student-init"), write(name), validation_fraction=0.3)
    assert summary["validation"]["kl"] < 0.9 * before["kl"]
    assert all(np.isfinite(line.get("tla", 0.0)) for line in read_metrics(tmp_path / "out"))


def test_signals_that_are_not_needed_may_be_missing(
    write: Callable[[str], str], teacher_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(write("everything"), tmp_path / "copy")
    for path in [*copy.glob("*.logits.tar"), *copy.glob("*.draws.tar")]:
        path.unlink()
    loop = {"max_steps": 2, "micro_batch_size": 4}
    summary = distill(train_config(str(copy), teacher_folder, tmp_path / "out", data={"cache": str(copy)}, loop=loop))
    assert summary["steps"] == 2


@pytest.mark.parametrize("packed", [False, True])
def test_dense_loss_and_evaluation_are_the_dense_kl(
    write: Callable[[str], str], teacher_folder: Path, tmp_path: Path, packed: bool
) -> None:
    cache = open_cache(write("everything"), ("tokens", "final"))
    rows = [[0, 3], [2, 1, 4]] if packed else [[0], [3], [2]]
    student = write_random_teacher(tmp_path / "student", seed=5)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    objective = Objective(LossConfig.model_validate({"tla": {"temperature": 2.0}}), cache.manifest.capture)
    batch = to_tensors(cache.read_rows(rows), packed)
    with torch.no_grad():
        teacher_side = teacher_rows(batch, cache.read_head())
        _, (term,) = objective.head_terms(masked_hidden(model, batch), output_head(model), teacher_side, 0.0)
        inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
        mask = batch["loss_mask"]
        wanted = dense_kl(model(**inputs).logits[mask], teacher(**inputs).logits[mask], 2.0).sum()
    assert term.total.item() == pytest.approx(wanted.item(), rel=0.01)  # int8
    own = evaluate_folder(str(teacher_folder), write("everything"))
    assert own["kl"] < 1e-3
    bucket = evaluate_folder(str(student), write("top_k"))
    dense = evaluate_folder(str(student), write("everything"))
    assert dense["kl"] > bucket["kl"], "the bucket's is a lower bound"
    assert (dense["kl_is_exact"], bucket["kl_is_exact"]) == (True, False)
    assert dense["perplexity"] == pytest.approx(bucket["perplexity"], rel=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_rows_with_and_without_a_whole_distribution_in_one_batch(
    write: Callable[[str], str], tmp_path: Path, packed: bool
) -> None:
    """Each row's loss is the one that it has in a batch of its own kind."""
    cache = open_cache(write("everything"), ("tokens", "logits", "final"))
    rows = [[0, 3], [2, 1, 4]] if packed else [[0], [3], [2]]
    student = write_random_teacher(tmp_path / "student", seed=5)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    batch = cache.read_rows(rows)
    teacher_head, size = cache.read_head(), model.config.vocab_size
    spelled = np.arange(size)
    maps = [TokenMap.of(spelled, size, size), TokenMap.of(np.where(spelled % 5 == 0, -1, spelled // 2), size, size)]
    dense = np.random.default_rng(0).integers(0, 3, batch.loss_mask.shape).astype(np.uint8) * batch.attention_mask
    objective = Objective(LossConfig.model_validate({"tla": {"target": "final"}}), cache.manifest.capture)
    by_entries = Objective(LossConfig.model_validate({"tla": {"target": "top_k"}}), cache.manifest.capture)

    def total(of: Objective, kind: int | None, own_maps: list[TokenMap], kinds: np.ndarray | None) -> float:
        mask = batch.loss_mask if kind is None else batch.loss_mask & (dense == kind)
        tensors = to_tensors(replace(batch, loss_mask=mask, dense=kinds), packed)
        side = teacher_rows(tensors, teacher_head, own_maps)
        with torch.no_grad():
            _, (term,) = of.head_terms(masked_hidden(model, tensors), output_head(model), side, 0.0)
        return term.total.item()

    ones = batch.attention_mask.astype(np.uint8)
    each = [total(by_entries, 0, [], None), total(objective, 1, [], None), total(objective, 2, maps[1:], ones)]
    assert total(objective, None, maps, dense) == pytest.approx(sum(each), rel=1e-5)
    assert each[2] == pytest.approx(total(objective, 2, maps, 2 * ones), rel=1e-6)
    assert each[2] != pytest.approx(total(objective, 2, [], None), rel=1e-2)
    assert total(objective, None, maps, 0 * dense) == pytest.approx(total(by_entries, None, [], None), rel=1e-6)
    whole = [to_tensors(replace(batch, dense=dense), packed)]
    measured = evaluate(model, whole, cache.manifest.capture, teacher_head, token_maps=maps)
    assert measured["kl"] * measured["tokens"] == pytest.approx(sum(each), rel=1e-5)


def test_rows_that_count_but_are_not_stored_are_an_error(write: Callable[[str], str]) -> None:
    cache = open_cache(write("dense"), ("tokens", "final"))
    rows = cache.read_rows([[0], [1]])
    assert "final" in rows.side
    assert rows.logprobs.shape[2] == rows.log_partition.shape[2] == 0
    assert np.isnan(rows.next_logprob).all()
    rows.loss_mask[0, -1] = True
    with pytest.raises(CorruptCacheError, match=r"the final signal has \d+ of the \d+ rows of a batch that count"):
        check_covered(rows)
