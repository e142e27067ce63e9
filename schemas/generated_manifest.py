"""The manifest of generated replies, ``generated.json``, and the commit mark of a shard of them.

``generated.json`` is written when the plan is complete (no shards), and again whenever shards were committed.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.generate_config import MAX_SHARD_REPLIES, PromptsConfig, ReasoningConfig, RejectConfig, SamplingConfig
from schemas.manifest import Count, FileEntry, ShardName, TeacherInfo, TokenizerInfo, check_rising
from schemas.sealed_file import SealedFile
from schemas.strict import Sha256, Strict

GENERATED_VERSION = 2
MAX_CONTENT_BYTES = 1 << 30  # of a file of prompts or replies, before compression: units are cut so as to stay below
Reason = Literal["repetitive", "truncated", "undecodable", "empty", "special", "refused", "incomplete"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Replies = Annotated[int, Field(ge=0, le=MAX_SHARD_REPLIES)]


class PromptCounts(Strict):
    """What became of the records that were read."""

    documents: Count = 0
    empty: Count = 0
    duplicates: Count = 0
    too_long: Count = Field(0, description="More tokens than `prompts.max_tokens`.")
    answered: Count = Field(0, description="Dropped: records that end with a reply.")
    malformed: Count = Field(0, description="Dropped: records that are not what their format asks for.")
    refused: Count = Field(0, description="Dropped: chats that the chat template refuses.")
    prompts: Count = 0
    tokens: Count = 0


class ContentEntry(FileEntry):
    """A zstd frame of an Arrow IPC stream: its size and sha256, and its size before compression."""

    content_bytes: Annotated[int, Field(ge=0, le=MAX_CONTENT_BYTES)]


class PromptUnit(Strict):
    """One planned unit of work: the shard it becomes and the file with its prompts."""

    name: ShardName
    prompts: Annotated[int, Field(ge=1, le=MAX_SHARD_REPLIES)]
    replies: Annotated[int, Field(ge=1, le=MAX_SHARD_REPLIES)]
    file: ContentEntry


class GeneratedShard(Strict):
    """``shard-000123.json``: the replies of a unit, and the mark that they are committed."""

    name: ShardName
    replies: Replies
    accepted: Replies
    prompt_tokens: Count = Field(description="Of all replies' prompts, each as often as it was answered.")
    new_tokens: Count
    rejected: dict[Reason, Replies]
    file: ContentEntry

    @model_validator(mode="after")
    def _adds_up(self) -> "GeneratedShard":
        if self.accepted + sum(self.rejected.values()) != self.replies:
            raise ValueError(f"{self.accepted} accepted and {self.rejected} rejected are not {self.replies} replies")
        return self


class GeneratedManifest(Strict, SealedFile):
    """``generated.json``: who replied to what and how, and where the replies are."""

    generated_version: Annotated[int, Field(ge=1)] = GENERATED_VERSION
    generator: TeacherInfo
    engine: str = Field(description="The engine that drew the tokens: each has random numbers of its own.")
    tokenizer: TokenizerInfo
    prompts: PromptsConfig = Field(description="Paths are cut to their last part.")
    prompts_fingerprint: Sha256
    counts: PromptCounts
    sampling: dict[str, SamplingConfig] = Field(description="By layer of the data mix.")
    stop_tokens: dict[str, list[Count]] = Field(description="By layer, the ids of tokens that end a reply.")
    seed: Count
    reject: RejectConfig
    reasoning: ReasoningConfig | None = None
    replies_per_shard: Replies
    units: list[PromptUnit]
    complete: bool
    shards: list[GeneratedShard]
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        "", description="sha256 of this file's text with this field empty."
    )

    @model_validator(mode="after")
    def _shards_are_units(self) -> "GeneratedManifest":
        check_rising([unit.name for unit in self.units], "units")
        check_rising([shard.name for shard in self.shards], "shards")
        units = {unit.name: unit for unit in self.units}
        for shard in self.shards:
            unit = units.get(shard.name)
            if unit is None or unit.replies != shard.replies:
                raise ValueError(f"shards: {shard.name} is none of the planned units, or has other replies")
        if self.complete and len(self.shards) < len(self.units):
            raise ValueError(f"complete is true, but {len(self.shards)} of {len(self.units)} units are committed")
        return self


def sampling_digest(sampling: SamplingConfig) -> str:
    """16 hex digits that name sampling settings in a reply's record; the number of samples is not in them."""
    return hashlib.sha256(sampling.model_dump_json(exclude={"samples"}).encode()).hexdigest()[:16]
