"""Every configuration that is checked in is one that the commands take."""

from pathlib import Path

import pytest

from schemas.cache_config import CacheConfig
from schemas.load import load_config
from schemas.train_config import TrainConfig
from trainer.forms import needed_signals
from trainer.signals import used

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_is_valid(path: Path) -> None:
    kind = {"cache": CacheConfig, "train": TrainConfig}[path.stem.rpartition("-")[2]]
    load_config(kind, str(path))


@pytest.mark.parametrize("name", sorted({path.stem.rpartition("-")[0] for path in CONFIGS}))
def test_the_cache_stores_what_the_training_run_beside_it_needs(name: str) -> None:
    folder = CONFIGS[0].parent
    cache = load_config(CacheConfig, str(folder / f"{name}-cache.yaml"))
    train = load_config(TrainConfig, str(folder / f"{name}-train.yaml"))
    assert train.data.cache == cache.output.path
    assert set(needed_signals(used(train.losses), cache.capture)) <= {"tokens", *cache.capture.signals}
    assert train.losses.tla.temperature in cache.capture.logits.temperatures
    assert not train.data.packing or train.data.pack_tokens >= cache.corpus.max_tokens
