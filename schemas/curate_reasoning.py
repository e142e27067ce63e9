"""Settings of the step of a curation that checks reasoning, as far as a machine can."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.cache_config import SourceConfig
from schemas.curate_filters import Name, OfLayers
from schemas.strict import Strict

ReasoningFlag = Literal["format", "independent", "consistent", "computed", "gold", "executed"]


class ProblemsConfig(Strict):
    """Files with what is known of problems, found by their prompt: any format of a corpus's source with fields."""

    path: str = Field(min_length=1, description="File, archive, or folder to be searched with `pattern`.")
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "hf_dataset"] = Field(
        "auto", description="As of a corpus's source."
    )
    pattern: str = Field("*", description="As of a corpus's source.")
    prompt: Name = Field("prompt", description="Field with what the user asks: the record's last message of the user.")

    def as_source(self) -> SourceConfig:
        """The settings that a corpus's source shares."""
        return SourceConfig(path=self.path, format=self.format, pattern=self.pattern)


class GoldConfig(ProblemsConfig):
    """Known answers."""

    answer: Name = Field(
        "answer", description="Field with the answer: a number, LaTeX, or a text; of GSM8K, what follows `####`."
    )


class TestsConfig(ProblemsConfig):
    """Known tests. With them, **code of the replies is run**."""

    tests: Name = Field("tests", description="Field with Python that raises if the reply's code is wrong.")
    seconds: int = Field(10, ge=1, le=3600, description="Of the CPU, for a reply and its tests.")
    isolation: Literal["required", "where_possible"] = Field(
        "required",
        description="`required`: no network, nothing but a temporary folder to write to, no other processes, by "
        "Linux's namespaces; where they are not to be had, it is an error. `where_possible`: limits of time, memory "
        "and file size alone are enough; in a container that has nothing to lose.",
    )


class ReasoningStep(OfLayers):
    """Flags what can be checked of chains of verification; records without a required flag leave."""

    step: Literal["reasoning"]
    layers: list[Name] | None = Field(
        ["reasoning"], min_length=1, description="Layers of the data mix that the step applies to; null: all."
    )
    require: Annotated[list[ReasoningFlag], Field(max_length=6)] = Field(
        ["format", "independent", "consistent", "computed"],
        description="Flags that a record must have; `[]`: all stay, with their flags.",
    )
    gold: GoldConfig | None = Field(None, description="Known answers, for `gold`.")
    executed: TestsConfig | None = Field(
        None, description="Known tests, for `executed`; null: no code of a reply is ever run."
    )

    @model_validator(mode="after")
    def _required_flags_can_be_had(self) -> "ReasoningStep":
        if "gold" in self.require and self.gold is None:
            raise ValueError("require: gold needs known answers; set gold.path")
        if "executed" in self.require and self.executed is None:
            raise ValueError("require: executed runs code of the replies; set executed.path to allow that")
        return self
