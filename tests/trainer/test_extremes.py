"""Numbers at the ends of their bounds: a run can be planned with each of them, and at once."""

import time
from typing import Any

import pytest

from trainer.data.data_state import DataState
from trainer.data.open_caches import open_cache
from trainer.data.training_data import plan_training
from trainer.run.arguments import training_arguments

EXTREMES: list[tuple[str, str, Any]] = [
    ("data", "shards_mixed", 2**31 - 1),
    ("data", "pack_tokens", 2**24),
    ("data", "validation_fraction", 1e-300),
    ("loop", "epochs", 10_000),
    ("loop", "epochs", 1e-300),
    ("loop", "max_steps", 2**31 - 1),
    ("loop", "micro_batch_size", 65536),
    ("loop", "gradient_accumulation", 65536),
    ("loop", "seed", 2**32 - 1),
    ("loop", "save_every", 2**31 - 1),
    ("loop", "log_every", 2**31 - 1),
    ("loop", "validate_every", 2**31 - 1),
    ("loop", "keep_checkpoints", 2**31 - 1),
    ("optimizer", "warmup_steps", 2**31 - 1),
    ("optimizer", "lr", 1e-300),
    ("optimizer", "eps", 1e-15),
    ("optimizer", "max_grad_norm", 1e9),
]


@pytest.mark.parametrize(("group", "key", "value"), EXTREMES)
def test_a_run_is_planned_at_once(make_config, group: str, key: str, value: Any) -> None:
    loop = {"max_steps": None, "epochs": 1} if key == "epochs" else {}
    data = {"packing": key == "pack_tokens"}
    config = make_config(**{"loop": loop, "data": data, group: {**(loop if group == "loop" else {}), key: value}})
    rows_per_step = config.loop.micro_batch_size * config.loop.gradient_accumulation
    start = time.process_time()
    training_arguments(config)
    cache = open_cache(config.data.shares[0].url)
    plan = plan_training(config.data, config.loop, [cache], rows_per_step, DataState())
    assert len(plan) % rows_per_step == 0
    assert all(0 <= sample < 40 for row in plan.rows(range(4)) for sample in row)
    assert time.process_time() - start < 30


@pytest.mark.parametrize("weights", [(1e-9, 1e9), (1e9, 1e9), (1e-9, 1e-9)])
def test_weights_of_caches_at_their_bounds(make_config, real_cache, weights: tuple[float, float]) -> None:
    shares = [{"url": str(real_cache), "weight": weight} for weight in weights]
    config = make_config(data={"cache": shares}, loop={"max_steps": 2**31 - 1})
    caches = [open_cache(share.url) for share in config.data.shares]
    plan = plan_training(config.data, config.loop, caches, 4, DataState())
    samples = [sample for row in plan.rows(range(200)) for sample in row]
    from_first = sum(sample < 40 for sample in samples) / len(samples)
    assert from_first == pytest.approx(weights[0] / sum(weights), abs=0.01)
