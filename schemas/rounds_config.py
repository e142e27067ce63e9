"""The configuration of ``train-student rounds``: a student that learns from its own text, round after round.

Its parts are those of the commands that a round runs. What a round itself decides (who generates, where files go) is
left out.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from schemas.cache_config import (
    CaptureConfig,
    CodecConfig,
    CorpusConfig,
    EngineConfig,
    OutputConfig,
    Provenance,
    SourceConfig,
    TeacherConfig,
    complete_capture,
)
from schemas.generate_config import GenerateConfig, GenerationOutput
from schemas.strict import Strict
from schemas.train_config import Divergence, FilePath, Steps, TrainConfig

Value = TypeVar("Value")
MAX_ROUNDS = 999


def _left_out(_: Any) -> Any:
    raise ValueError("each round sets it; leave it out")


LeftOut = Annotated[str, AfterValidator(_left_out)]
Rate = Annotated[float, Field(gt=0, le=10)]


class RoundGenerator(TeacherConfig):
    """How the student is loaded to generate."""

    path: LeftOut = Field("", description="Left out: the student as it is before the round.")
    revision: Annotated[str | None, AfterValidator(_left_out)] = Field(None, description="Left out.")


class RoundReplies(GenerationOutput):
    """How the replies of a round are written."""

    path: LeftOut = Field("", description="Left out: `replies` in the round's folder.")


class RoundGeneration(GenerateConfig):
    """What the student replies to, and how replies are drawn; as ``teacher-cache generate``."""

    generator: RoundGenerator = RoundGenerator()
    output: RoundReplies = RoundReplies()


class RoundCorpus(CorpusConfig):
    """How replies become sequences."""

    sources: Annotated[list[SourceConfig], AfterValidator(_left_out)] = Field(
        [], description="Left out: the round's replies."
    )


class RoundCache(OutputConfig):
    """How the cache of a round is written."""

    path: LeftOut = Field("", description="Left out: `cache` in the round's folder.")


class RoundScoring(Strict):
    """The teacher that reads the replies, and what is stored of it; as ``teacher-cache run``."""

    teacher: TeacherConfig
    engine: EngineConfig = EngineConfig()
    corpus: RoundCorpus = Field(
        RoundCorpus(), description="`max_tokens` left out: the longest prompt with the longest reply."
    )
    capture: CaptureConfig | None = Field(
        None, description="Default: as the first base cache, which it must equal to be mixed with it."
    )
    codec: CodecConfig = CodecConfig()
    output: RoundCache = RoundCache()
    provenance: Provenance = Provenance()

    @model_validator(mode="before")
    @classmethod
    def _complete_capture(cls, tree: Any) -> Any:
        return complete_capture(tree) if isinstance(tree, dict) and tree.get("capture") is not None else tree


class RoundTraining(TrainConfig):
    """The training of every round, as ``train-student run``; `data.cache` are the base caches."""

    output: LeftOut = Field("", description="Left out: `train` in the round's folder.")


class RoundMixture(Strict):
    """What a round trains on."""

    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of the rows that are the student's own text; the rest are of the base caches, by their "
        "weights. At 1 the base caches are not read.",
    )
    caches: Literal["newest", "all"] = Field(
        "newest", description="The student's text of this round, or of all rounds so far in equal shares."
    )


class RoundsConfig(Strict):
    """The configuration file of ``train-student rounds``."""

    rounds: int = Field(ge=1, le=MAX_ROUNDS, description="May be raised later: rounds that are complete stay.")
    generate: RoundGeneration
    score: RoundScoring
    train: RoundTraining | None = Field(None, description="The training of every round.")
    train_config: FilePath | None = Field(
        None,
        description="In place of `train`: a configuration file of `train-student run`, whose `output` is not used.",
    )
    mixture: RoundMixture = RoundMixture()
    steps: Steps | Annotated[list[Steps], Field(min_length=1)] | None = Field(
        None, description="Optimiser steps of every round, or a list with those of each; default: as the training's."
    )
    lr: Rate | Annotated[list[Rate], Field(min_length=1)] | None = Field(
        None, description="Peak learning rate of every round, or a list; each round has the training's schedule anew."
    )
    divergence: Divergence | Annotated[list[Divergence], Field(min_length=1)] | None = Field(
        None, description="`losses.tla.divergence` of every round, or a list; default: as the training's."
    )
    least_accepted: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Least share of a round's replies that must be accepted (docs/generation.md); with fewer the "
        "rounds stop before the teacher is loaded.",
    )
    keep: Literal["caches", "latest", "none"] = Field(
        "latest",
        description="Replies and caches of complete rounds: all, the newest round's, or none. Checkpoints of complete "
        "rounds are removed, final models and counts always stay.",
    )
    launcher: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        max_length=64,
        description="Put before `train-student run`, for several GPUs: "
        "`[torchrun, --nproc-per-node, '8', --no-python]`.",
    )
    output: FilePath = Field(description="Folder of all rounds.")

    @model_validator(mode="after")
    def _one_training(self) -> "RoundsConfig":
        if (self.train is None) == (self.train_config is None):
            raise ValueError("set exactly one of train and train_config")
        return self

    @model_validator(mode="after")
    def _one_value_for_each_round(self) -> "RoundsConfig":
        for key in ("steps", "lr", "divergence"):
            value = getattr(self, key)
            if isinstance(value, list) and len(value) != self.rounds:
                raise ValueError(f"{key}: {len(value)} values for {self.rounds} rounds; give one, or one for each")
        return self

    @model_validator(mode="after")
    def _caches_that_are_read_are_kept(self) -> "RoundsConfig":
        if self.mixture.caches == "all" and self.keep != "caches":
            raise ValueError("mixture.caches: all trains on the caches of all rounds; set keep: caches")
        return self


def of_round(value: Value | list[Value] | None, number: int) -> Value | None:
    """What `steps`, `lr` or `divergence` are in a round, numbered from 1; None: as the training's."""
    return value[number - 1] if isinstance(value, list) else value
