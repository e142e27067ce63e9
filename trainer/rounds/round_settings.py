"""The settings of rounds with what they refer to, checked before anything runs; and where each round writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.cache_config import BEST_TARGET, MAX_TOKENS, CaptureConfig, TeacherConfig
from schemas.errors import UserError
from schemas.load import load_config
from schemas.rounds_config import RoundsConfig, of_round
from schemas.train_config import TrainConfig
from teacher_cache.shards.storage import Storage
from teacher_cache.teacher import load_tokenizer
from teacher_cache.tokenizer import describe_tokenizer
from teacher_cache.trust.required import required_manifest
from trainer.data.shares import required_of

START = "start"  # folder of the first student, if it is cut from another model


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
        given = self.training.kept_checkpoint
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
        return min(asked.prompts.max_tokens + asked.most_after_prompt, MAX_TOKENS)


def settled(config: RoundsConfig) -> Settings:
    """Read what the configuration refers to. Raises UserError if its parts do not fit together."""
    if config.train_config is not None:
        training = load_config(TrainConfig, config.train_config)
    else:
        assert config.train is not None
        training = config.train
    if training.quantization is not None:
        raise UserError(
            "train.quantization: every round would round its start again; leave it out, and quantise in a run that "
            "starts from the last round's student"
        )
    if training.student.adapter is not None:
        raise UserError(
            "train.student.adapter: the next round starts from, and generates with, a whole model; leave it out"
        )
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


def check_tokenizers(settings: Settings) -> None:
    """Raise UserError unless student and teacher have the same tokenizer: the student's ids are what is scored."""
    given = settings.training.student
    student, key = (given.checkpoint, "checkpoint") if given.checkpoint is not None else (given.teacher, "teacher")
    teacher = settings.config.score.teacher
    own = TeacherConfig(path=str(student), trust_remote_code=given.trust_remote_code)
    ours = describe_tokenizer(load_tokenizer(own, f"train.student.{key}")).fingerprint
    theirs = describe_tokenizer(load_tokenizer(teacher, "score.teacher.path")).fingerprint
    if ours != theirs:
        raise UserError(
            f"train.student.{key}: {student}: its tokenizer (vocabulary {ours[:12]}…) is not that of "
            f"score.teacher.path {teacher.path} ({theirs[:12]}…), which reads the student's token ids; rounds need one "
            "tokenizer"
        )
