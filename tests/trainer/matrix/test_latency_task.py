"""Latency: what is asked of vLLM's benchmark, and what is made of its answer. The benchmark itself is a stand-in."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import MachineError, UserError
from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_config import LatencyTask
from support.models import tiny_config
from trainer.matrix import latency_task
from trainer.matrix.latency_task import percentile, run

STAND_IN = """
import json, os, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
size = int(options["--batch-size"])
{action}
with open(options["--output-json"], "w") as file:
    json.dump({{"latencies": [size * (1 + n / 10) for n in range(int(options["--num-iters"]))]}}, file)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(action: str = "") -> None:
        path = tmp_path / "stand_in.py"
        path.write_text(STAND_IN.format(action=action.replace("FOLDER", str(tmp_path))))
        monkeypatch.setattr(latency_task, "COMMAND", (sys.executable, str(path)))

    write()
    return write


@pytest.fixture
def model(tmp_path: Path) -> MatrixModel:
    tiny_config(vocab_size=10_000).save_pretrained(tmp_path / "model")
    return MatrixModel(name="m", folder=str(tmp_path / "model"))


def task(**changes) -> LatencyTask:
    settings = {"batch_sizes": [4, 1], "input_tokens": 64, "output_tokens": 32, "repeats": 5, **changes}
    return LatencyTask(kind="latency", name="l", **settings)


def test_percentiles_and_throughput_are_those_of_the_latencies(stand_in, model) -> None:
    result = run(task(), model, Backends())
    found = {measure.name: measure.value for measure in result.measures}
    seconds = np.array([1.0, 1.1, 1.2, 1.3, 1.4])
    assert found == pytest.approx(
        {
            "seconds p50, batch 1": 1.2,
            "seconds p95, batch 1": np.percentile(seconds, 95),
            "tokens per second, batch 1": 32 / 1.2,
            "seconds p50, batch 4": 4.8,
            "seconds p95, batch 4": np.percentile(4 * seconds, 95),
            "tokens per second, batch 4": 4 * 32 / 4.8,
        }
    )
    assert [measure.higher_is_better for measure in result.measures[:3]] == [False, False, True]
    assert result.items is None


@pytest.mark.parametrize("count", [1, 2, 30])
def test_percentiles_are_numpys(count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    for percent in (0, 50, 95, 100):
        assert percentile(list(values), percent) == pytest.approx(np.percentile(values, percent), rel=1e-12)


def test_what_the_benchmark_is_told(stand_in, model, tmp_path: Path) -> None:
    stand_in('json.dump(sys.argv[1:], open("FOLDER/seen", "w")); assert os.environ["HF_HUB_OFFLINE"] == "1"')
    run(task(batch_sizes=[8], warm_up=2), model, Backends())
    seen = json.loads((tmp_path / "seen").read_text())
    told = dict(zip(seen[::2], seen[1::2], strict=True))
    wanted = {"--model": model.folder, "--batch-size": "8", "--input-len": "64", "--output-len": "32"}
    wanted |= {"--num-iters": "5", "--num-iters-warmup": "2", "--dtype": "float32", "--max-model-len": "96"}
    assert {**told, **wanted} == told


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ('sys.exit("out of luck")', "batch size 1: vllm bench ended with 1: out of luck"),
        ('options["--num-iters"] = 4', "vllm bench wrote 4 latencies, wanted 5 positive ones"),
        ("size = -1", "vllm bench wrote 5 latencies, wanted 5 positive ones"),
        ('open(options["--output-json"], "w").write("[]"); sys.exit()', "vllm bench wrote no latencies"),
    ],
)
def test_a_benchmark_that_fails_is_said_in_one_line(action: str, message: str, stand_in, model) -> None:
    stand_in(action)
    with pytest.raises(UserError, match=message):
        run(task(), model, Backends())


def test_a_benchmark_that_takes_too_long_is_ended(stand_in, model, tmp_path: Path) -> None:
    stand_in('open("FOLDER/pid", "w").write(str(os.getpid())); time.sleep(60)')
    with pytest.raises(MachineError, match="batch size 1: vllm bench took longer than limit_minutes"):
        run(task(limit_minutes=0.02), model, Backends())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_model_that_cannot_be_measured_is_refused(stand_in, model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reads at most 512 tokens, input_tokens \+ output_tokens are 532; lower them"):
        run(task(input_tokens=500), model, Backends())
    tiny_config().save_pretrained(model.folder)
    with pytest.raises(UserError, match="384 tokens; vllm bench draws prompts of token ids below 10,000"):
        run(task(), model, Backends())
