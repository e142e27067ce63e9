"""The manifest of a curated corpus, ``curated.json``: what went in, what each step did, and the files of the result.

It is written last: a corpus without it is not complete. Equal input and settings give equal bytes, whatever the number
of workers, so its sha256 names the corpus.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from schemas.curate_config import MAX_SHARD_RECORDS, InputConfig
from schemas.curate_steps import StepSettings
from schemas.generated_manifest import ContentEntry
from schemas.manifest import Count, ShardName, TokenizerInfo, check_rising
from schemas.sealed_file import SealedFile
from schemas.strict import Sha256, Strict

CURATED_VERSION = 1
READING = "read"  # the name of what comes before the first step
FileName = Annotated[str, Field(pattern=r"^removed-[0-9]{2}-[0-9]{6,9}\.zst$")]
Records = Annotated[int, Field(ge=1, le=MAX_SHARD_RECORDS)]


class Amount(Strict):
    """A number of records and their tokens that count."""

    records: Count = 0
    tokens: Count = 0


class SourceInfo(Strict):
    """One source of the input."""

    name: str = Field(description="Last part of its path.")
    digest: Sha256 | None = Field(None, description="Of generated and curated ones: the sha256 in their manifest.")


class StepCounts(Strict):
    """What a step did. Records that reach it are those that the one before left."""

    step: str = Field(description="Its name; `read` for the input, before the first step.")
    key: str = Field(description="Its place in the configuration, `steps.0`; `input` for the input.")
    entered: Amount
    stayed: Amount
    removed: dict[str, Amount] = Field(description="By reason.")
    by_source: dict[str, dict[str, Count]] = Field(description="By number of the source, records removed by reason.")
    by_layer: dict[str, dict[str, Count]] = Field(description="By layer, records removed by reason.")
    flags: dict[str, dict[str, Count]] = Field(
        {}, description="Of flags that it set: records by value (true, false or a word)."
    )
    notes: dict[str, Any] = Field({}, description="What it decided by: thresholds, tokens by layer.")


class CuratedShard(Strict):
    """What stays of consecutive records of the input."""

    name: ShardName
    records: Records
    tokens: Count
    file: ContentEntry


class RemovedFile(Strict):
    """Records that left in one pass over consecutive records of the input, each with step and reason."""

    name: FileName
    records: Records
    file: ContentEntry


class CuratedManifest(Strict, SealedFile):
    """``curated.json``."""

    curated_version: Annotated[int, Field(ge=1)] = CURATED_VERSION
    tokenizer: TokenizerInfo
    input: InputConfig = Field(description="Paths are cut to their last part.")
    input_fingerprint: Sha256
    sources: list[SourceInfo]
    steps: list[StepSettings]
    step_fingerprints: list[str] = Field(description="Of files that a step reads; empty: none.")
    records_per_shard: Records
    layers: dict[str, Amount] = Field({}, description="What the corpus holds, by layer of the data mix.")
    counts: list[StepCounts] = Field([])
    shards: list[CuratedShard] = Field([])
    removed: list[RemovedFile] = Field([])
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        "", description="sha256 of this file's text with this field empty: the digest of the corpus."
    )

    @model_validator(mode="after")
    def _adds_up(self) -> "CuratedManifest":
        check_rising([shard.name for shard in self.shards], "shards")
        held = sum(shard.records for shard in self.shards), sum(shard.tokens for shard in self.shards)
        said = sum(each.records for each in self.layers.values()), sum(each.tokens for each in self.layers.values())
        if held != said:
            raise ValueError(
                f"the shards hold {held[0]} records of {held[1]} tokens, the layers {said[0]} of {said[1]}"
            )
        return self
