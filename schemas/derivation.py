"""Provenance of a derived cache: a subset of one, a union of several, or one re-encoded."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.signal_names import CapturedSignal
from schemas.strict import Sha256, Strict

ShardNumber = Annotated[int, Field(ge=0, lt=10**9)]


class Selection(Strict):
    """A part of a cache: the intersection of all criteria that are set."""

    signals: list[CapturedSignal] | None = Field(None, description="Signals beside the tokens; logits are among them.")
    shards: list[tuple[ShardNumber, ShardNumber]] | None = Field(
        None, description="Shards by number: ranges, both ends included."
    )
    layers: list[str] | None = Field(None, description="Samples of these layers of the data mix.")
    share: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] | None = Field(
        None, description="Samples whose key hashes to a number (0 to 1) from the first to below the second."
    )

    @property
    def chooses_samples(self) -> bool:
        """Whether it may select only some samples of a shard."""
        return self.layers is not None or self.share is not None

    @model_validator(mode="after")
    def _is_possible(self) -> "Selection":
        if self.signals is not None and "logits" not in self.signals:
            raise ValueError("signals must contain logits, which every cache has")
        for name, ranges in (("shards", self.shards or []), ("share", [self.share] if self.share else [])):
            for start, stop in ranges:
                if start > stop:
                    raise ValueError(f"{name}: {start} to {stop} is not a range")
        return self


class SourceCache(Strict):
    """A source cache, as it was at the time."""

    manifest_sha256: Sha256
    samples: Annotated[int, Field(ge=0)]
    tokens: Annotated[int, Field(ge=0)]
    derived: "Derivation | None" = None


class Derivation(Strict):
    """How a cache was derived from others."""

    action: Literal["subset", "merge", "repack", "import", "upgrade"]
    sources: list[SourceCache]
    selection: Selection | None = Field(None, description="`subset`: the part that was taken.")
    duplicates_dropped: int | None = Field(None, ge=0, description="`merge`: samples that an earlier source had too.")
    notes: str = ""
