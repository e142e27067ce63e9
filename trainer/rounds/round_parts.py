"""The parts of a round: where each writes, and its configuration as its own command reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from schemas.cache_config import BEST_TARGET, MAX_TOKENS, CacheConfig, CaptureConfig
from schemas.errors import UserError
from schemas.generate_config import GenerateConfig
from schemas.load import load_config, validate
from schemas.rounds_config import RoundsConfig, of_round
from schemas.train_config import CacheShare, TrainConfig
from teacher_cache.shards.storage import Storage
from teacher_cache.trust.required import required_manifest
from trainer.data.shares import required_of

START = "start"  # folder of the first student, if it is cut from its teacher
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Round:
    """The folder of a round, numbered from 1."""

    number: int
    folder: Path

    @property
    def replies(self) -> Path:
        """What the student wrote."""
        return self.folder / "replies"

    @property
    def cache(self) -> Path:
        """What the teacher says of it."""
        return self.folder / "cache"

    @property
    def training(self) -> Path:
        """The training run."""
        return self.folder / "train"

    @property
    def final(self) -> Path:
        """The student after the round."""
        return self.training / "final"

    @property
    def record(self) -> Path:
        """Counts of the complete round; written last."""
        return self.folder / "round.json"


@dataclass(frozen=True)
class Settings:
    """A configuration with what it refers to: the training of every round, and what the teacher's caches store."""

    config: RoundsConfig
    training: TrainConfig
    capture: CaptureConfig

    @property
    def output(self) -> Path:
        """The folder of all rounds."""
        return Path(self.config.output)

    def round(self, number: int) -> Round:
        """The folder of a round."""
        return Round(number, self.output / f"round-{number:03d}")

    def student_before(self, number: int) -> Path:
        """The model folder that generates in a round and that its training starts from."""
        if number > 1:
            return self.round(number - 1).final
        given = self.training.student.checkpoint
        return self.output / START / "student-init" if given is None else Path(given)

    def schedule(self, number: int) -> dict[str, Any]:
        """Steps, peak learning rate and divergence of a round."""
        config, training = self.config, self.training
        return {
            "steps": of_round(config.steps, number) or training.loop.max_steps,
            "lr": of_round(config.lr, number) or training.optimizer.lr,
            "divergence": of_round(config.divergence, number) or training.losses.tla.divergence,
        }

    def longest_sequence(self) -> int:
        """Tokens of the longest prompt with the longest reply."""
        asked = self.config.generate
        layers = {source.layer for source in asked.prompts.sources}
        longest = asked.prompts.max_tokens + max(asked.sampling_of(layer).max_new_tokens for layer in layers)
        return min(longest, MAX_TOKENS)


def settled(config: RoundsConfig) -> Settings:
    """Read what the configuration refers to. Raises UserError if its parts do not fit together."""
    if config.train_config is not None:
        training = load_config(TrainConfig, config.train_config)
    else:
        assert config.train is not None
        training = config.train
    if training.student.config is not None:
        raise UserError(
            "train.student.config: random weights write nothing to learn from; train the student first, and set "
            "train.student.checkpoint"
        )
    shares = training.data.shares
    if config.mixture.share == 1:
        settings = Settings(config, training, config.score.capture or BEST_TARGET)
    else:
        if len(shares) > 1 and any(share.weight is None for share in shares):
            raise UserError("train.data.cache: set a weight for each of several base caches")
        captures = [required_manifest(Storage(one.url), required_of(one, training.data)).capture for one in shares]
        settings = Settings(config, training, config.score.capture or captures[0])
    _check_target(settings)
    if config.mixture.share < 1:
        for share, capture in zip(shares, captures, strict=True):
            _check_capture(settings, share.url, capture)
    return settings


def _target(settings: Settings) -> str:
    """The signal that TLA learns from."""
    capture = settings.capture
    return settings.training.losses.tla.target or ("final" if capture.final else "draws" if capture.draws else "top_k")


def _check_target(settings: Settings) -> None:
    for number in range(1, settings.config.rounds + 1):
        divergence = settings.schedule(number)["divergence"]
        if divergence != "forward" and _target(settings) == "draws":
            raise UserError(
                f"divergence: {divergence} (round {number}) cannot be estimated from draws; use forward, or set "
                "losses.tla.target: top_k in the training's configuration"
            )


def _check_capture(settings: Settings, url: str, present: CaptureConfig) -> None:
    """Raise UserError if a base cache stores the signals that are trained on in another way than the rounds' will."""
    losses = settings.training.losses
    needed = {"logits": True, "hidden": losses.lhsm is not None, "attention": losses.apc is not None}
    needed |= {"draws": _target(settings) == "draws", "final": _target(settings) == "final"}
    for name in (name for name, is_needed in needed.items() if is_needed):
        found, wanted = getattr(settings.capture, name), getattr(present, name)
        if found != wanted:
            raise UserError(
                f"score.capture.{name}: {found} is not what the base cache {url} has, {wanted}; leave score.capture "
                "out to store the same"
            )


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
    student = base.student.model_dump(mode="json") | {"teacher": None, "from_layers": None}
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
