"""Every configuration that is checked in is one that the commands take."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.demo import ARMS, FOLDER
from schemas.cache_config import CacheConfig
from schemas.curate_config import CurateConfig
from schemas.generate_config import GenerateConfig
from schemas.load import load_config
from schemas.matrix_config import DistillationTask, MatrixConfig
from schemas.rounds_config import RoundsConfig
from schemas.train_config import TrainConfig
from trainer.losses.objective import Objective
from trainer.losses.schedule import weight_at

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_valid(path: Path) -> None:
    kinds = {"cache": CacheConfig, "train": TrainConfig, "generate": GenerateConfig, "pyramid": CurateConfig}
    kinds |= {"rounds": RoundsConfig, "matrix": MatrixConfig}
    kind = kinds[path.stem.rpartition("-")[2]]
    load_config(kind, str(path))


@pytest.mark.parametrize(
    "name", sorted(path.stem.removesuffix("-train") for path in CONFIGS if path.stem.endswith("-train"))
)
def test_the_cache_stores_what_the_training_run_beside_it_needs(name: str) -> None:
    folder = CONFIGS[0].parent
    cache = load_config(CacheConfig, str(folder / f"{name}-cache.yaml"))
    train = load_config(TrainConfig, str(folder / f"{name}-train.yaml"))
    assert {share.url for share in train.data.shares} == {cache.output.path}
    layers = {source.layer for source in cache.corpus.sources}
    assert {layer for share in train.data.shares for layer in share.layers or []} <= layers
    assert set(Objective(train.losses, cache.capture).signals) <= {"tokens", *cache.capture.signals}
    assert train.losses.tla.temperature in cache.capture.logits.temperatures
    assert not train.data.packing or train.data.pack_tokens >= cache.corpus.max_tokens


def test_the_rounds_go_on_from_the_demo() -> None:
    folder = CONFIGS[0].parent
    rounds = load_config(RoundsConfig, str(folder / "demo-rounds.yaml"))
    cache = load_config(CacheConfig, str(folder / "demo-cache.yaml"))
    train = load_config(TrainConfig, str(folder / "demo-train.yaml"))
    assert rounds.train is not None
    assert [share.url for share in rounds.train.data.shares] == [cache.output.path]
    assert rounds.train.student.checkpoint == f"{train.output}/final"
    assert rounds.score.teacher == cache.teacher
    assert {source.path for source in rounds.generate.prompts.sources} < {each.path for each in cache.corpus.sources}


def test_the_matrix_compares_what_the_demo_trains() -> None:
    matrix = load_config(MatrixConfig, str(CONFIGS[0].parent / "demo-matrix.yaml"))
    seeds = (0, 1)  # `make demo` without ARGS
    wanted = {(arm, seed, f"{FOLDER}/seed-{seed}-{arm.replace(' ', '-')}/final") for arm in ARMS for seed in seeds}
    assert {(model.arm, model.seed, model.folder) for model in matrix.models} == wanted
    assert isinstance(matrix.tasks[0], DistillationTask)
    assert matrix.tasks[0].cache == f"{FOLDER}/held-out/cache"


def test_the_large_recipe_has_the_recipes_numbers() -> None:
    folder = CONFIGS[0].parent
    cache = load_config(CacheConfig, str(folder / "qwen-35b-a3b-cache.yaml"))
    train = load_config(TrainConfig, str(folder / "qwen-35b-a3b-train.yaml"))
    losses, loop, optimizer = train.losses, train.loop, train.optimizer
    assert losses.lhsm is not None
    assert losses.apc is not None
    assert losses.asr is not None
    assert cache.capture.attention is not None
    at = [[weight_at(losses.tla.weight, p), weight_at(losses.apc.weight, p)] for p in (0.0, 0.2, 0.6, 1.0)]
    assert np.allclose(at, [[1.0, 0.0], [0.86, 0.0], [0.58, 0.25], [0.3, 0.5]])
    assert [weight_at(losses.lhsm.weight, p) for p in (0.0, 1.0)] == [0.8, 0.8]
    assert [weight_at(losses.asr.weight, p) for p in (0.0, 1.0)] == [0.001, 0.001]
    assert losses.tla.temperature == 3.0
    assert [(pair.teacher, pair.student) for pair in losses.lhsm.pairs or []] == [(12, 8), (24, 16), (36, 24)]
    assert (cache.capture.attention.heads, cache.capture.attention.positions) == (3, "keywords")
    pyramid = [(share.layers, share.weight) for share in train.data.shares]
    assert pyramid == [(["base"], 60), (["code"], 25), (["reasoning"], 15)]
    assert train.data.pack_tokens == cache.corpus.max_tokens == 32 * 1024
    assert (optimizer.lr, optimizer.warmup_steps, optimizer.weight_decay) == (2e-5, 1000, 0.01)
    assert (optimizer.betas, optimizer.eps, optimizer.max_grad_norm) == ((0.9, 0.999), 1e-8, 1.0)
    assert (loop.micro_batch_size, loop.gradient_accumulation, loop.max_steps) == (1, 32, 3 * 120_000)
    assert (loop.parallel, loop.cpu_offload, loop.bf16) == ("fsdp", True, True)
    assert (loop.save_every, loop.validate_every, loop.early_stopping_patience) == (5000, 5000, 3)
