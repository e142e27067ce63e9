"""The configuration of each part of a round, as the part's own command reads it."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from schemas.cache_config import CacheConfig
from schemas.generate_config import GenerateConfig
from schemas.load import validate
from schemas.train_config import CacheShare, TrainConfig
from trainer.rounds.round_settings import START, Settings

Model = TypeVar("Model", bound=BaseModel)


def starting(settings: Settings) -> TrainConfig:
    """What ``train-student init`` reads, for a student that is cut from its teacher."""
    return _with(TrainConfig, settings.training, {"output": str(settings.output / START)}, "train")


def generating(settings: Settings, number: int, student: Path | None = None) -> GenerateConfig:
    """What ``teacher-cache generate`` reads in a round; ``student``: in place of the round's own."""
    config, place = settings.config.generate, settings.round(number)
    name = config.generator.name or settings.student_before(1).name
    changes = {
        "generator": {
            "path": str(student or settings.student_before(number)),
            "name": name if number == 1 else f"{name}, round {number - 1}",
        },
        "seed": config.seed + number - 1,
        "output": {"path": str(place.replies)},
    }
    return _with(GenerateConfig, config, changes, "generate")


def scoring(settings: Settings, number: int) -> CacheConfig:
    """What ``teacher-cache run`` reads in a round."""
    config, place = settings.config.score, settings.round(number)
    corpus: dict[str, Any] = {"sources": [{"path": str(place.replies), "format": "generated"}]}
    if "max_tokens" not in config.corpus.model_fields_set:
        corpus["max_tokens"] = settings.longest_sequence()
    capture = settings.capture.model_dump(mode="json")
    return _with(
        CacheConfig, config, {"corpus": corpus, "capture": capture, "output": {"path": str(place.cache)}}, "score"
    )


def training(settings: Settings, number: int) -> TrainConfig:
    """What ``train-student run`` reads in a round: another order of the data in each."""
    base, schedule = settings.training, settings.schedule(number)
    student = base.student.model_dump(mode="json") | {"teacher": None, "from_layers": None, "ffn": None}
    changes = {
        "data": {"cache": [share.model_dump(mode="json") for share in _shares(settings, number)]},
        "student": student | {"checkpoint": str(settings.student_before(number))},
        "losses": {"tla": {"divergence": schedule["divergence"]}},
        "optimizer": {"lr": schedule["lr"]},
        "loop": {"max_steps": schedule["steps"], "seed": (base.loop.seed + number - 1) % 2**32},
        "output": str(settings.round(number).training),
    }
    return _with(TrainConfig, base, changes, "train")


def _shares(settings: Settings, number: int) -> list[CacheShare]:
    """The base caches by their weights, and the student's text."""
    mixture, base = settings.config.mixture, settings.training.data.shares
    own = [settings.round(number)] if mixture.caches == "newest" else [settings.round(n + 1) for n in range(number)]
    shares = [CacheShare(url=str(each.cache), weight=mixture.share / len(own)) for each in own]
    if mixture.share == 1:
        return shares
    weights = [1.0 if share.weight is None else share.weight for share in base]
    parts = [(1 - mixture.share) * weight / sum(weights) for weight in weights]
    return [share.model_copy(update={"weight": part}) for share, part in zip(base, parts, strict=True)] + shares


def _with(model: type[Model], settings: BaseModel, changes: dict[str, Any], where: str) -> Model:
    """``settings`` as ``model``, with changes to single keys."""
    return validate(model, _merged(settings.model_dump(mode="json"), changes), where)


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return tree | {
        key: _merged(tree[key], value) if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
        for key, value in changes.items()
    }
