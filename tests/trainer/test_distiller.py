"""Whole runs of tiny students over a synthetic cache."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, TrainerCallback

from schemas.cache_config import LogitsCapture
from schemas.errors import CorruptCacheError, UserError
from support.callbacks import StopAt
from support.commands import fork_server
from support.logged import read_metrics
from support.models import tiny_tokenizer
from support.reference_rows import tla
from support.synthetic import random_shards, write_cache
from teacher_cache.shards.reader import CacheReader
from teacher_cache.stop_request import StopRequest
from teacher_cache.tokenizer import describe_tokenizer
from trainer.data.batches import to_tensors
from trainer.data.open_caches import open_cache
from trainer.data.order import CacheOrder, Shuffle
from trainer.data.selection import Selection, Subset, is_held_out
from trainer.distiller import distill
from trainer.evaluate import evaluate_folder

BOTH = {
    "losses": {
        "tla": {"weight": {"start": 1.0, "end": 0.3}},
        "cross_entropy": {"weight": {"start": 0.5, "end": 0.5}},
    }
}


def losses(output: str | Path) -> list[tuple[int, float, float]]:
    return [(record["step"], record["loss"], record["tla"]) for record in read_metrics(output, "loss")]


def test_a_run_writes_all_its_files(make_config, student_folder: Path, real_cache: Path) -> None:
    config = make_config(**BOTH, data={"validation_fraction": 0.2}, loop={"max_steps": 30, "validate_every": 10})
    summary = distill(config)
    output = Path(config.output)
    records = read_metrics(output, "loss")
    assert [record["step"] for record in records] == list(range(1, 31))
    assert np.mean([r["loss"] for r in records[-5:]]) < 0.8 * np.mean([r["loss"] for r in records[:5]])
    for record in records:
        assert list(record)[:4] == ["step", "tla", "cross_entropy", "loss"], "terms before their weights come first"
        progress = (record["step"] - 1) / 30
        assert record["tla_weight"] == pytest.approx(1.0 - 0.7 * progress)
        assert record["tla_weighted"] == pytest.approx(record["tla"] * record["tla_weight"], rel=1e-5)
        assert record["cross_entropy_weighted"] == pytest.approx(record["cross_entropy"] * 0.5, rel=1e-5)
        assert record["loss"] == pytest.approx(record["tla_weighted"] + record["cross_entropy_weighted"], rel=1e-5)
    validations = read_metrics(output, "eval_kl")
    assert [record["step"] for record in validations] == [10, 20, 30]
    before = evaluate_folder(str(student_folder), str(real_cache), validation_fraction=0.2)
    after = evaluate_folder(str(output / "final"), str(real_cache), validation_fraction=0.2)
    assert after["kl"] == pytest.approx(validations[-1]["eval_kl"], rel=1e-5)
    assert after["kl"] < before["kl"]
    assert summary["validation"]["kl"] == validations[-1]["eval_kl"]

    digest = open_cache(str(real_cache)).manifest.digest()
    assert sorted(p.name for p in output.glob("checkpoint-*")) == ["checkpoint-28", "checkpoint-30"]
    assert json.loads((output / "checkpoint-30" / "data_state.json").read_text())["cache_digest"] == digest
    card = (output / "final" / "README.md").read_text()
    assert digest in card
    assert "synthetic" in card
    assert "weight 1.0 → 0.3" in card
    assert list((output / "tensorboard").glob("events.*"))
    assert json.loads((output / "summary.json").read_text()) == summary
    assert summary["ended"] == "completed"
    assert summary["peak_memory_bytes"] > 2**20
    assert summary["tokens_per_second"] > 0

    model = AutoModelForCausalLM.from_pretrained(output / "final")
    saved = AutoModelForCausalLM.from_pretrained(output / "checkpoint-30")
    assert torch.equal(model.lm_head.weight, saved.lm_head.weight)
    assert model.config.use_cache is True
    assert not list((output / "final").glob("*.bin"))


def test_first_loss_is_the_mean_over_the_tokens_of_the_whole_batch(make_config, student_folder, real_cache) -> None:
    config = make_config(loop={"max_steps": 1, "micro_batch_size": 1, "gradient_accumulation": 6})
    distill(config)
    cache = open_cache(str(real_cache))
    rows = CacheOrder(Subset(cache, Selection()), Shuffle(seed=0, shards_mixed=64)).rows(0, 6)
    student = AutoModelForCausalLM.from_pretrained(student_folder)
    batch = to_tensors(cache.read_rows(rows), packed=False)
    mask = batch["loss_mask"]
    with torch.no_grad():
        logits = student(batch["input_ids"]).logits[mask]
        expected = tla(logits, (batch["ids"][mask], batch["logprobs"][mask], batch["log_partition"][mask][:, 0])).mean()
    assert losses(config.output)[0][1] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_a_cache_of_loss_rows_only_gives_the_losses_of_a_full_cache(make_config, tmp_path, packing: bool) -> None:
    lengths = np.random.default_rng(3).integers(3, 20, (2, 10)).tolist()
    seen = []
    for positions in ("all", "loss_mask"):
        capture = LogitsCapture(k=8, positions=positions)
        url = str(tmp_path / positions)
        write_cache(url, random_shards(lengths, 61, capture, seed=3, counting=0.6), 61, capture)
        data = {"cache": url, "validation_fraction": 0.3, "packing": packing, "pack_tokens": 60}
        config = make_config(data=data, output=str(tmp_path / f"out-{positions}"))
        summary = distill(config)
        seen.append((losses(config.output), summary["validation"]["kl"], summary["validation"]["tokens"]))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 6


def test_accumulation_equals_one_large_batch(make_config, tmp_path) -> None:
    seen = []
    for micro, accumulation in ((1, 4), (2, 2), (4, 1)):
        loop = {"micro_batch_size": micro, "gradient_accumulation": accumulation}
        config = make_config(loop=loop, output=str(tmp_path / f"out{micro}"))
        distill(config)
        seen.append(losses(config.output))
    assert seen[0] != seen[0][:1] * 6
    for other in seen[1:]:
        np.testing.assert_allclose(seen[0], other, rtol=1e-4)


@pytest.mark.parametrize("log_every", [1, 3])
def test_interrupted_and_resumed_equals_uninterrupted(make_config, tmp_path, log_every: int) -> None:
    loop = {"max_steps": 9, "save_every": 100, "log_every": log_every}
    whole = make_config(loop=loop, output=str(tmp_path / "whole"))
    distill(whole)
    parts = make_config(loop=loop, output=str(tmp_path / "parts"))
    for step in (2, 5):
        stop = StopRequest()
        summary = distill(parts, stop, [StopAt(step, stop)])
        assert (summary["ended"], summary["steps"]) == ("interrupted", step)
        assert not (Path(parts.output) / "final").exists()
    assert distill(parts)["ended"] == "completed"
    np.testing.assert_allclose(losses(parts.output), losses(whole.output), atol=1e-5)
    assert [r["epoch"] for r in read_metrics(parts.output, "loss")] == [
        r["epoch"] for r in read_metrics(whole.output, "loss")
    ]
    assert [r["learning_rate"] for r in read_metrics(parts.output, "loss")] == [
        r["learning_rate"] for r in read_metrics(whole.output, "loss")
    ]


def test_resume_rereads_no_sample(make_config, monkeypatch) -> None:
    from teacher_cache.shards.reader import CacheReader

    read: list[list[int]] = []
    original = CacheReader.read_rows
    monkeypatch.setattr(
        CacheReader, "read_rows", lambda self, rows, *more: read.extend(rows) or original(self, rows, *more)
    )
    stop = StopRequest()
    config = make_config()
    distill(config, stop, [StopAt(4, stop)])
    first = len(read)
    distill(config)
    assert first <= 4 * 4 + 2  # accelerate looks one micro-batch ahead
    assert len(read) - first == 2 * 4


def test_a_crash_while_saving_falls_back_to_the_last_complete_checkpoint(make_config, tmp_path) -> None:
    whole = make_config(output=str(tmp_path / "whole"))
    distill(whole)
    config = make_config()
    with pytest.raises(RuntimeError, match="crash"):
        distill(config, callbacks=[StopAt(6)])
    (Path(config.output) / "checkpoint-4" / "distill_state.json").unlink()
    assert len(read_metrics(config.output, "loss")) == 5
    distill(config)
    np.testing.assert_allclose(losses(config.output), losses(whole.output), atol=1e-5)


def test_finished_run_is_not_run_again(make_config) -> None:
    config = make_config()
    first = distill(config)
    again = distill(config)
    assert again["steps"] == first["steps"] == 6
    assert again["tokens_this_run"] == 0
    assert json.loads((Path(config.output) / "summary.json").read_text()) == first


def test_packed_rows_train(make_config) -> None:
    data = {"packing": True, "pack_tokens": 48, "validation_fraction": 0.2}
    config = make_config(data=data, loop={"max_steps": 20, "gradient_accumulation": 1, "validate_every": 20})
    summary = distill(config)
    records = read_metrics(config.output, "loss")
    assert records[-1]["loss"] < records[0]["loss"]
    assert summary["tokens"] > 20 * 2 * 48 * 0.75  # rows are well filled
    assert read_metrics(config.output, "eval_kl")[-1]["step"] == 20


def test_sample_too_long_to_pack(make_config) -> None:
    with pytest.raises(UserError, match=r"a sample has 19 tokens, more than data.pack_tokens = 8"):
        distill(make_config(data={"packing": True, "pack_tokens": 8}))


def test_worker_processes_give_the_same_losses(make_config, tmp_path) -> None:
    inside, outside = (
        make_config(loop={"max_steps": 3}),
        make_config(loop={"max_steps": 3}, data={"num_workers": 1}, output=str(tmp_path / "workers")),
    )
    distill(inside)
    distill(outside)
    np.testing.assert_allclose(losses(outside.output), losses(inside.output), atol=1e-6)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork data workers: spawning would start an interpreter and import torch in each."""
    fork_server()
    monkeypatch.setattr("trainer.data.batches.WORKERS_START_BY", "forkserver")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_cache_is_a_one_line_error(make_config, real_cache, tmp_path, forked_workers, workers: int) -> None:
    broken = shutil.copytree(real_cache, tmp_path / "broken")
    for tar in broken.glob("*.logits.tar"):
        data = bytearray(tar.read_bytes())
        for place in range(600, len(data) - 1024, 100):
            data[place] ^= 1
        tar.write_bytes(bytes(data))
    with pytest.raises(CorruptCacheError, match=r"^\S*broken\S*\.logits\.tar: sample [0-9a-f]{32}: xxh3 ") as caught:
        distill(make_config(data={"cache": str(broken), "num_workers": workers}))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_samples_are_skipped_with_on_corrupt_skip(
    make_config, real_cache, tmp_path, forked_workers, workers: int
) -> None:
    """Other batches keep their losses; skipped samples are counted, also across a resume."""
    broken = shutil.copytree(real_cache, tmp_path / "broken")
    tar = broken / "shard-000001.logits.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    (broken / "shard-000002.json").unlink()
    (broken / "shard-000002.json").write_bytes(bytes((real_cache / "shard-000002.json").stat().st_size))
    loop = {"epochs": 2, "max_steps": None, "micro_batch_size": 1, "gradient_accumulation": 4}
    data = {"cache": str(broken), "num_workers": workers, "on_corrupt": "skip"}
    config = make_config(data=data, loop=loop, optimizer={"lr": 1e-30})
    with pytest.raises(RuntimeError, match="crash"):
        distill(config, callbacks=[StopAt(15)])
    summary = distill(config)
    assert summary["skipped_samples"] == 40
    sound = CacheReader(str(real_cache)).num_tokens
    assert summary["tokens"] == 2 * (sound[:10].sum() + sound[30:].sum())
    records = read_metrics(config.output, "loss")
    assert records[-1]["skipped_samples"] == 40
    skipped = np.diff([0, *(record["skipped_samples"] for record in records)])
    whole = make_config(
        data={"cache": str(real_cache)}, loop=loop, optimizer={"lr": 1e-30}, output=str(tmp_path / "whole")
    )
    distill(whole)
    wanted = {step: loss for step, loss, _ in losses(whole.output)}
    same = [wanted[record["step"]] == pytest.approx(record["loss"], rel=1e-5) for record in records]
    assert [bool(none) for none in skipped == 0] == same
    assert any(same)
    assert not all(same)


def test_unreadable_samples_are_skipped_in_validation_too(make_config, real_cache, tmp_path) -> None:
    broken = shutil.copytree(real_cache, tmp_path / "broken")
    tar = broken / "shard-000001.logits.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    data = {"cache": str(broken), "validation_fraction": 0.3}
    with pytest.raises(CorruptCacheError):
        distill(make_config(data=data))
    summary = distill(make_config(data={**data, "on_corrupt": "skip"}))
    reader = CacheReader(str(real_cache))
    held_out = is_held_out(reader.keys, 0.3) & (np.arange(40) // 10 != 1)
    assert summary["validation"]["tokens"] == (reader.num_tokens - 1)[held_out].sum()


def test_changed_cache_is_refused_unless_starting_over(make_config, tmp_path) -> None:
    config = make_config()
    distill(config)
    other = tmp_path / "other"
    write_cache(str(other), random_shards([[9] * 12], 61, seed=5), 61)
    with pytest.raises(UserError, match="manifest digest"):
        distill(make_config(data={"cache": str(other)}))
    summary = distill(make_config(data={"cache": str(other)}, loop={"resume": False, "max_steps": 2}))
    assert summary["cache_digest"] == open_cache(str(other)).manifest.digest()
    assert [record["step"] for record in read_metrics(config.output, "loss")] == [1, 2]


def test_early_stopping_keeps_the_best_model(make_config) -> None:
    config = make_config(
        data={"validation_fraction": 0.3},
        optimizer={"lr": 1.0},  # makes the student worse
        loop={"max_steps": 40, "validate_every": 1, "save_every": 100, "early_stopping_patience": 3},
    )
    summary = distill(config)
    output = Path(config.output)
    kls = {record["step"]: record["eval_kl"] for record in read_metrics(output, "eval_kl")}
    best = min(kls, key=kls.__getitem__)
    assert summary["ended"] == "early stopping"
    assert summary["steps"] == best + 3 < 40
    assert summary["final_step"] == best
    assert summary["validation"]["kl"] == kls[best]
    final = AutoModelForCausalLM.from_pretrained(output / "final")
    kept = AutoModelForCausalLM.from_pretrained(output / f"checkpoint-{best}")
    assert torch.equal(final.lm_head.weight, kept.lm_head.weight)
    assert distill(config)["steps"] == summary["steps"]  # stays stopped


def test_early_stopping_needs_validation(make_config) -> None:
    with pytest.raises(UserError, match=r"loop.early_stopping_patience: 2 needs validation data"):
        distill(make_config(loop={"early_stopping_patience": 2}))


def test_separate_validation_cache(make_config, tmp_path) -> None:
    write_cache(str(tmp_path / "held-out"), random_shards([[9] * 3], 61, seed=9), 61)
    config = make_config(data={"validation_cache": str(tmp_path / "held-out")}, loop={"validate_every": 3})
    distill(config)
    assert {record["eval_tokens"] for record in read_metrics(config.output, "eval_kl")} == {24}


def test_a_validation_fraction_that_leaves_nothing_is_refused(make_config) -> None:
    with pytest.raises(UserError, match=r"1e-09 of the samples of .* leaves nothing to validate on"):
        distill(make_config(data={"validation_fraction": 1e-9}))


def test_a_temperature_missing_from_the_cache_is_refused(make_config) -> None:
    with pytest.raises(
        UserError, match=r"losses.tla.temperature: 2.0 is not among .*, the temperatures of the cache's top_k target"
    ):
        distill(make_config(losses={"tla": {"temperature": 2.0}}))


def test_a_mismatched_vocabulary_is_refused(make_config, tmp_path) -> None:
    write_cache(str(tmp_path / "large"), random_shards([[9] * 3], 100), 100)
    with pytest.raises(UserError, match="tokenizer has 100 tokens but the student's vocabulary has 61"):
        distill(make_config(data={"cache": str(tmp_path / "large")}))


def test_an_exploding_loss_is_an_error(make_config, student_folder, tmp_path) -> None:
    broken = tmp_path / "broken"
    model = AutoModelForCausalLM.from_pretrained(student_folder)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    model.save_pretrained(broken)
    with pytest.raises(UserError, match=r"the loss is nan at step 1; lower optimizer.lr"):
        distill(make_config(student={"checkpoint": str(broken)}))


def test_the_final_model_has_the_tokenizer(make_config, student_folder, real_cache, tmp_path) -> None:
    student = shutil.copytree(student_folder, tmp_path / "student")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(student)
    with pytest.raises(UserError, match="is not the one the cache"):
        distill(make_config(student={"checkpoint": str(student)}))
    cache = shutil.copytree(real_cache, tmp_path / "cache")
    manifest = open_cache(str(cache)).manifest
    info = describe_tokenizer(tokenizer).model_copy(update={"vocab_size": 61})
    (cache / "manifest.json").write_text(manifest.model_copy(update={"tokenizer": info}).to_json())
    config = make_config(student={"checkpoint": str(student)}, data={"cache": str(cache)}, loop={"max_steps": 1})
    distill(config)
    final = Path(config.output) / "final"
    assert (final / "tokenizer.json").read_bytes() == (student / "tokenizer.json").read_bytes()


KILL_WORKERS = """
import multiprocessing, sys
from transformers import TrainerCallback
from schemas.errors import UserError
from schemas.train_config import TrainConfig
from trainer.distiller import distill

class KillWorkers(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        for child in multiprocessing.active_children():
            child.kill()

try:
    distill(TrainConfig.model_validate_json(sys.argv[1]), callbacks=[KillWorkers()])
except UserError as error:
    print(error)
"""


def test_a_killed_worker_is_a_one_line_error(make_config) -> None:
    """In a subprocess: torch raises again, anywhere, whenever another child ends."""
    config = make_config(data={"num_workers": 1}, loop={"max_steps": 500})
    command = [sys.executable, "-c", KILL_WORKERS, config.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    wanted = r"data\.num_workers: a worker process was killed \(.*\); the same command continues .*\n"
    assert re.fullmatch(wanted, done.stdout), done.stdout + done.stderr


class SlowReader(TrainerCallback):
    """Makes every micro-batch wait 30 ms, and every step last 60 ms more."""

    def on_train_begin(self, args, state, control, train_dataloader, **kwargs) -> None:
        cache = train_dataloader.dataset.cache
        read = cache.read_rows
        cache.read_rows = lambda *rows: time.sleep(0.03) or read(*rows)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        time.sleep(0.06)


def test_waiting_for_data_is_measured(make_config) -> None:
    """Six steps of two micro-batches; the loader reads one ahead, so the last step waits for fewer."""
    config = make_config(loop={"log_every": 2})
    distill(config, callbacks=[SlowReader()])
    records = read_metrics(config.output, "loss")
    assert [record["step"] for record in records] == [2, 4, 6]
    assert sum(2 * record["data_wait"] for record in records) >= 12 * 0.03
    for record in records:
        assert record["data_wait"] + 0.06 <= record["step_seconds"]
        assert record["data_wait_share"] == pytest.approx(record["data_wait"] / record["step_seconds"])


def test_packed_rows_have_the_losses_of_padded_ones(make_config, tmp_path) -> None:
    """Each step covers all samples, packed in one row or in a row each."""
    seen = []
    for name, data, loop in (
        ("padded", {}, {"micro_batch_size": 8, "gradient_accumulation": 5}),
        ("packed", {"packing": True, "pack_tokens": 1000}, {"micro_batch_size": 1, "gradient_accumulation": 1}),
    ):
        config = make_config(**BOTH, data=data, loop={**loop, "max_steps": 3}, output=str(tmp_path / name))
        summary = distill(config)
        assert summary["epochs"] == 3
        seen.append((losses(config.output), summary["tokens"]))
    assert seen[0][1] == seen[1][1]
    np.testing.assert_allclose(seen[0][0], seen[1][0], rtol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_compiled_layers_have_the_loss_and_gradient_of_plain_ones(make_config, tmp_path) -> None:
    seen = []
    for compiled in (False, True):
        counters.clear()
        loop = {"compile": compiled, "max_steps": 1, "gradient_accumulation": 1}
        config = make_config(loop=loop, output=str(tmp_path / str(compiled)))
        distill(config)
        assert (counters["frames"]["ok"] > 0) == compiled
        seen.append([(record["loss"], record["grad_norm"]) for record in read_metrics(config.output, "loss")])
    np.testing.assert_allclose(*seen, rtol=1e-4)


def test_compile_is_refused_with_losses_that_read_inside_layers(make_config) -> None:
    with pytest.raises(ValueError, match=r"loop\.compile: losses\.apc and losses\.asr record inside"):
        make_config(loop={"compile": True}, losses={"asr": {}})
