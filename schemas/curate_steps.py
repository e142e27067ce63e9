"""Settings of the steps of a curation: a list in the order in which they are applied, each named by ``step``."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.curate_filters import FilterSettings
from schemas.curate_reasoning import ReasoningStep
from schemas.strict import Strict

MAX_SHARES = 256


class DeduplicateStep(Strict):
    """Of records that say nearly the same, the first stays. Word 5-grams, MinHash of 14 bands of 8 rows."""

    step: Literal["deduplicate"]
    of: Literal["all", "prompt", "reply"] = Field(
        "all", description="The text that is compared: prompt and reply, or one of them."
    )
    min_jaccard: float = Field(
        0.72,
        ge=0.5,
        le=1,
        description="Records whose sets of 5-grams have at least this (estimated) Jaccard similarity are near "
        "duplicates; below 0.7, the bands find few of them.",
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="Of the hash functions.")


class MixStep(Strict):
    """Layers of the data mix are cut to shares of tokens that count."""

    step: Literal["mix"]
    shares: dict[str, Annotated[float, Field(ge=0, le=1e9)]] = Field(
        min_length=1,
        max_length=MAX_SHARES,
        description="By layer, its part of the tokens that are learned; any scale (`base: 60, reasoning: 25, "
        "code: 15`). Every layer is named; one with 0 is left out.",
    )
    tokens: int | None = Field(
        None, ge=1, le=10**15, description="Tokens of the result; needed unless layers may `shrink`."
    )
    on_deficit: Literal["error", "shrink"] = Field(
        "error",
        description="If a layer has too few tokens for its share of `tokens`: stop and say how many are missing, or "
        "`shrink` all layers to what it allows (the report names it).",
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="Another seed chooses other records.")

    @field_validator("shares")
    @classmethod
    def _is_not_nothing(cls, value: dict[str, float]) -> dict[str, float]:
        if not any(value.values()):
            raise ValueError("at least one share must be above 0")
        return value

    @model_validator(mode="after")
    def _knows_its_total(self) -> "MixStep":
        if self.tokens is None and self.on_deficit == "error":
            raise ValueError("tokens: set how many are wanted, or `on_deficit: shrink` to take what the layers allow")
        return self


# Further steps: one class each, with `step: Literal["name"]`, and its name in this union.
StepSettings = Annotated[DeduplicateStep | MixStep | FilterSettings | ReasoningStep, Field(discriminator="step")]
