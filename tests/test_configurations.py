"""Every configuration in ``configs/`` starts: a generation, or a cache, and training on it up to the first step.

Tiny models stand in for the paths, the transformers engine for vLLM, SDPA for Flash Attention's kernel, one process for
many. Everything else is as the files say.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from schemas.cache_config import CacheConfig, SourceConfig
from schemas.generate_config import GenerateConfig
from schemas.load import load_config
from schemas.rounds_config import RoundsConfig
from schemas.train_config import TrainConfig
from support.flash_stand_in import FlashStandIn
from support.logged import read_metrics
from support.models import write_random_teacher
from support.ranks import finish_all, started
from support.small_rounds import write_small_rounds
from teacher_cache.generation.generation_job import generate
from teacher_cache.job import run
from trainer.rounds.round_parts import generating, scoring, training
from trainer.rounds.round_settings import check_tokenizers, settled

CONFIGS = Path(__file__).parent.parent / "configs"
PAIRS = sorted(path.name.removesuffix("-cache.yaml") for path in CONFIGS.glob("*-cache.yaml"))
GENERATIONS = sorted(CONFIGS.glob("*-generate.yaml"))
LAYERS = {"demo": (30, 30), "qwen-35b-a3b": (48, 24)}  # of teacher and student, where the files name layers


def test_every_configuration_is_tried() -> None:
    assert {path.name for path in CONFIGS.iterdir()} == {
        *(f"{pair}-{kind}.yaml" for pair in PAIRS for kind in ("cache", "train")),
        *(path.name for path in GENERATIONS),
        "demo-rounds.yaml",
        "demo-matrix.yaml",  # in test_configs.py
        "pyramid.yaml",  # in test_pyramid.py
        "recipe",  # in benchmarks/test_recipe.py
    }


def write_sources(sources: Sequence[SourceConfig], section: str, folder: Path) -> list[str]:
    """A source's file or folder in place of each that a configuration names; returns overrides."""
    overrides = []
    for number, source in enumerate(sources):
        texts = [" ".join(f"def f{number}{i}{n}(x): return x" for n in range(4)) for i in range(6)]
        path = folder / f"source-{number}"
        if source.format == "text":
            path.mkdir()
            for i, text in enumerate(texts):
                (path / f"{i}.py").write_text(text)
        else:
            path = path.with_suffix(".jsonl")
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        overrides.append(f"{section}.sources.{number}.path={path}")
    return overrides


@pytest.mark.parametrize("file", GENERATIONS, ids=lambda file: file.stem)
def test_a_generation_starts(file: Path, tmp_path: Path) -> None:
    generator = write_random_teacher(tmp_path / "generator", max_position_embeddings=32768)
    as_written = load_config(GenerateConfig, str(file))
    paths = [f"generator.path={generator}", f"output.path={tmp_path / 'replies'}"]
    paths += write_sources(as_written.prompts.sources, "prompts", tmp_path)
    small = ["engine.kind=transformers", "engine.device=cpu", "sampling.max_new_tokens=2"]
    small += [f"layers.{layer}.max_new_tokens=2" for layer in as_written.layers]
    summary = generate(load_config(GenerateConfig, str(file), (*paths, *small)))
    assert summary.complete
    assert summary.prompts == 6 * len(as_written.prompts.sources)
    sampling = [as_written.sampling_of(source.layer) for source in as_written.prompts.sources]
    assert summary.replies == sum(6 * each.samples for each in sampling)


@pytest.mark.parametrize("pair", PAIRS)
def test_starts(pair: str, tmp_path: Path) -> None:
    teacher_layers, student_layers = LAYERS.get(pair, (4, 4))
    teacher = write_random_teacher(
        tmp_path / "teacher", num_hidden_layers=teacher_layers, num_attention_heads=4, max_position_embeddings=32768
    )
    student = write_random_teacher(
        tmp_path / "student", seed=1, num_hidden_layers=student_layers, num_attention_heads=4
    )
    file = CONFIGS / f"{pair}-cache.yaml"
    sources = load_config(CacheConfig, str(file)).corpus.sources
    paths = [f"teacher.path={teacher}", f"output.path={tmp_path / 'cache'}"]
    paths += write_sources(sources, "corpus", tmp_path)
    small = ["engine.kind=transformers", "engine.device=cpu", "engine.tensor_parallel=1"]
    cached = run(load_config(CacheConfig, str(file), (*paths, *small)))
    assert cached.tokens > 0

    file = CONFIGS / f"{pair}-train.yaml"
    as_written = load_config(TrainConfig, str(file))
    paths = [f"output={tmp_path / 'out'}"]
    paths.append(f"student.teacher={teacher}" if as_written.student.teacher else f"student.checkpoint={student}")
    if isinstance(as_written.data.cache, str):
        paths.append(f"data.cache={tmp_path / 'cache'}")
    else:
        paths += [f"data.cache.{n}.url={tmp_path / 'cache'}" for n in range(len(as_written.data.cache))]
    if as_written.data.local_copies:
        paths.append(f"data.local_copies.folder={tmp_path / 'copies'}")
    small = ["loop.max_steps=1", "loop.gradient_accumulation=2", "loop.log_every=1", "data.num_workers=0"]
    small += ["data.validation_fraction=0.5"] if as_written.data.validation_fraction else []
    if as_written.student.attention == "auto" and as_written.data.packing and as_written.loop.bf16:
        small.append("student.attention=varlen")  # what it means on a GPU
    config = load_config(TrainConfig, str(file), (*paths, *small))
    summary = finish_all(started(config, 1, before=FlashStandIn()))
    assert summary["steps"] == 1
    assert summary["ended"] == "completed"
    (logged,) = read_metrics(config.output, "loss")
    assert {name for name in ("tla", "lhsm", "apc", "asr") if name in logged} == {
        name for name in ("tla", "lhsm", "apc", "asr") if getattr(config.losses, name) is not None
    }


def test_rounds_start(tmp_path: Path) -> None:
    folder = write_small_rounds(tmp_path)
    paths = {
        "generate.prompts.sources.0.path": folder / "prompts.jsonl",
        "score.teacher.path": folder / "teacher",
        "train.data.cache": folder / "base",
        "train.student.checkpoint": folder / "student",
        "output": folder / "rounds",
    }
    overrides = tuple(f"{key}={path}" for key, path in paths.items())
    settings = settled(load_config(RoundsConfig, str(CONFIGS / "demo-rounds.yaml"), overrides))
    check_tokenizers(settings)
    for number in range(1, settings.config.rounds + 1):
        generated, scored = generating(settings, number), scoring(settings, number)
        assert scored.corpus.sources[0].path == generated.output.path
        assert scored.output.path in {share.url for share in training(settings, number).data.shares}
