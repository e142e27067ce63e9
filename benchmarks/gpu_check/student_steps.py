"""Part 5: a few steps of training in every way that a GPU is used, from the cache of the part before."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_check.device_caches import cache_folder
from benchmarks.gpu_check.device_size import DeviceSize
from benchmarks.gpu_check.random_models import moe_config, qwen3_config, write_model
from benchmarks.gpu_check.reporting import WORK, Report
from benchmarks.support.results import Row, at_most
from schemas.load import validate
from schemas.train_config import TrainConfig
from trainer.distiller import distill

FLOAT32, BFLOAT16 = 1e-3, 0.03  # relative difference of a step's loss
CLI = "trainer.train_student_cli"


class Way(NamedTuple):
    """One way of training; its losses are compared with those of ``against``, if that was run."""

    name: str
    changes: dict[str, dict[str, Any]]
    against: str | None = None
    tolerance: float = FLOAT32
    torchrun: bool = False
    only_on: str | None = None
    student: str = "student"


PACKED = {"packing": True, "pack_tokens": 1024}
WAYS = (
    Way("float32", {}, "float32 on the CPU"),
    Way("bf16", {"loop": {"bf16": True}}, "float32", BFLOAT16),
    Way("gradient checkpointing", {"loop": {"gradient_checkpointing": True}}, "float32"),
    Way("compiled", {"loop": {"compile": True}}, "float32", only_on="cuda"),
    Way("bf16, packed, SDPA", {"loop": {"bf16": True}, "data": PACKED, "student": {"attention": "sdpa"}}),
    Way(
        "bf16, packed, attention as by default",
        {"loop": {"bf16": True}, "data": PACKED},
        "bf16, packed, SDPA",
        BFLOAT16,
    ),
    Way("mixture of experts", {}, student="moe"),
    Way("FSDP, one process", {"loop": {"parallel": "fsdp"}}, "float32", torchrun=True, only_on="cuda"),
    Way(
        "FSDP, one process, off-loaded",
        {"loop": {"parallel": "fsdp", "cpu_offload": True}},
        "float32",
        torchrun=True,
        only_on="cuda",
    ),
)


def measure(size: DeviceSize, report: Report) -> None:
    """Train in each way, and compare the losses of the steps."""
    if not (cache_folder("cpu") / "manifest.json").exists():
        report.skip("training", "there is no cache to train from: the part before has failed")
        return
    shutil.rmtree(WORK / "trained", ignore_errors=True)
    write_model(WORK / "student", qwen3_config(size.teacher), seed=1)
    write_model(WORK / "moe", moe_config(size.teacher), seed=1)
    losses: dict[str, list[float]] = {}
    if size.device == "cuda":
        losses["float32 on the CPU"] = _in_process(_config(size, "float32 on the CPU", {}), without_gpu=True)
    for way in WAYS:
        if way.only_on not in (None, size.device):
            report.skip(way.name, "is for GPUs; tests run it on CPUs")
            continue
        config = _config(size, way.name, way.changes, way.student)
        try:
            losses[way.name] = _in_process(config, torchrun=True) if way.torchrun else _here(config)
        except Exception as error:
            line = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            report.add(Row(f"{way.name}: {line[0][:200]}", "failed", bar="done", holds=False))
            continue
        found = losses[way.name]
        if way.against is None or way.against not in losses:
            sound = len(found) == size.training_steps and all(loss == loss and loss > 0 for loss in found)
            report.add(
                Row(f"{way.name}: losses of {size.training_steps} steps", _listed(found), bar="finite", holds=sound)
            )
            continue
        worst = max(abs(one / other - 1) for one, other in zip(found, losses[way.against], strict=True))
        what = f"{way.name}: loss of a step against {way.against}, largest difference"
        report.add(at_most(what, worst, "relative", way.tolerance))
    if size.device == "cuda":
        report.add(Row("memory allocated at its peak", torch.cuda.max_memory_allocated() / 2**30, "GiB"))


def _listed(losses: list[float]) -> str:
    return ", ".join(f"{loss:.4f}" for loss in losses)


def _config(size: DeviceSize, name: str, changes: dict[str, dict[str, Any]], student: str = "student") -> TrainConfig:
    tree: dict[str, Any] = {
        "data": {"cache": str(cache_folder("cpu")), "num_workers": 0},
        "student": {"checkpoint": str(WORK / student)},
        "losses": {"lhsm": {}, "apc": {}, "asr": {}},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
        "loop": {"max_steps": size.training_steps, "micro_batch_size": 2, "gradient_accumulation": 2, "resume": False},
        "output": str(WORK / "trained" / name.replace(" ", "-").replace(",", "")),
    }
    for group, values in changes.items():
        tree[group] = {**tree[group], **values}
    return validate(TrainConfig, tree, "gpu check")


def _here(config: TrainConfig) -> list[float]:
    distill(config)
    return _losses(config)


def _in_process(config: TrainConfig, torchrun: bool = False, without_gpu: bool = False) -> list[float]:
    """Train by the command, in a process of its own. Raises CalledProcessError."""
    path = Path(config.output).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.model_dump_json(), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"] if torchrun else []
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if without_gpu else {})}
    command = [sys.executable, *launcher, "-m", CLI, "run", str(path), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"exit status {done.returncode}")
    return _losses(config)


def _losses(config: TrainConfig) -> list[float]:
    lines = (Path(config.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]
