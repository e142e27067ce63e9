"""Stages of a curation: the steps in groups, each a pass over all records, and what is left of each on disk.

Stage 0 reads the input in chunks. Every further stage applies what the global step before it decided, then local steps,
and its records are what the next global step compares. A chunk of a stage is done when its mark is there; a decision
when its own is. Chunks are always the same records of the input, so workers can do them in any order.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from schemas.curate_config import CurateConfig
from schemas.curated_manifest import Amount, CuratedManifest, CuratedShard, RemovedFile
from schemas.errors import UserError
from schemas.generated_manifest import ContentEntry
from schemas.load import parse_cache_file
from schemas.strict import Strict
from teacher_cache.curation.curation_step import GlobalStep, LocalStep
from teacher_cache.curation.step_tally import StepTally
from teacher_cache.shards.storage import Storage

PLAN, READ, TOKENIZER = "plan.json", "read.json", "tokenizer.json"
MAX_MARK_BYTES = 1 << 24
_OURS = re.compile(r"[0-9]{2}(-[0-9]{6,9})?(\.(sketched|decided))?\.(zst|json|sketch|table|codes)")
TABLE = np.dtype([("number", "<i8"), ("source", "<i4"), ("layer", "<i4"), ("n_tokens", "<i8")])


@dataclass(frozen=True)
class Stage:
    """Numbers of steps: the global one whose decision is applied, local ones, and the global one that follows."""

    number: int  # from 1
    decided: int | None
    local: tuple[int, ...]
    following: int | None


def stages_of(steps: Sequence[LocalStep | GlobalStep]) -> list[Stage]:
    """The stages in order; the last is followed by no global step."""
    stages: list[Stage] = []
    decided: int | None = None
    local: list[int] = []
    for index, step in enumerate(steps):
        if isinstance(step, GlobalStep):
            stages.append(Stage(len(stages) + 1, decided, tuple(local), index))
            decided, local = index, []
        else:
            local.append(index)
    return [*stages, Stage(len(stages) + 1, decided, tuple(local), None)]


class PlanFile(Strict):
    """``plan.json``: what the scratch folder is for."""

    output: str
    compared: list[int] = Field(description="Numbers of the global steps.")
    manifest: CuratedManifest = Field(description="Without counts and shards.")


class ReadMark(Strict):
    """``read.json``: the whole input was read."""

    chunks: int


class ChunkMark(Strict):
    """A chunk of a stage is done: what stays of it, what left, and what each step did."""

    records: int
    tokens: int
    layers: dict[str, Amount]
    file: ContentEntry | None = Field(description="None if no record stays.")
    removed: RemovedFile | None
    tallies: list[StepTally]

    def shard(self, chunk: int) -> CuratedShard | None:
        """The shard that a chunk of the last stage is."""
        if self.file is None:
            return None
        return CuratedShard(name=shard_of(chunk), records=self.records, tokens=self.tokens, file=self.file)


class SketchMark(Strict):
    """The sketches of a chunk are in place."""

    dtype: str
    width: list[int]


class DecisionMark(Strict):
    """A global step has decided."""

    notes: dict[str, Any]


def scratch_path(config: CurateConfig) -> str:
    """The scratch folder. Raises UserError if it cannot be one."""
    output = Storage(config.output.path)
    path = config.output.scratch
    if path is None and output.is_local:
        path = config.output.path.rstrip("/") + ".scratch"
    if path is None or not Storage(path).is_local:
        raise UserError(
            f"output.scratch: {path or 'not set'}: a local folder is needed for what is kept on the way, about twice "
            "the size of the input; set one"
        )
    return path


def shard_of(chunk: int) -> str:
    """Name of the shard that a chunk becomes."""
    return f"shard-{chunk:06d}"


def records_name(stage: int, chunk: int) -> str:
    """File of the records that stay, in scratch."""
    return f"{stage:02d}-{chunk:06d}.zst"


def mark_of(stage: int, chunk: int) -> str:
    """The mark of a chunk of a stage."""
    return f"{stage:02d}-{chunk:06d}.json"


def removed_name(stage: int, chunk: int) -> str:
    """File of the records that left, at the output's place."""
    return f"removed-{stage:02d}-{chunk:06d}.zst"


def sketch_mark(stage: int, chunk: int) -> str:
    """The mark of a chunk's sketches."""
    return f"{stage:02d}-{chunk:06d}.sketched.json"


def sketch_name(stage: int) -> str:
    """Sketches of all records of a stage, one after the other."""
    return f"{stage:02d}.sketch"


def table_name(stage: int) -> str:
    """Columns of all records of a stage."""
    return f"{stage:02d}.table"


def codes_name(stage: int) -> str:
    """Decision of the global step that follows a stage: a byte per record."""
    return f"{stage:02d}.codes"


def decision_name(stage: int) -> str:
    """The mark of that decision."""
    return f"{stage:02d}.decided.json"


def is_ours(name: str) -> bool:
    """Whether a file in scratch is one of these, other than the plan."""
    return name in (READ, TOKENIZER) or _OURS.fullmatch(name) is not None


def stage_of(name: str) -> int | None:
    """The stage that a file in scratch belongs to; None: none."""
    return int(name[:2]) if _OURS.fullmatch(name) else None


def is_comparison(name: str) -> bool:
    """Whether a stage's file is of the global step that follows it: sketches, columns, decision."""
    return name.endswith((".sketch", ".table", ".codes", ".sketched.json", ".decided.json"))


def read_mark(scratch: Storage, stage: int, chunk: int) -> ChunkMark:
    """Read the mark of a chunk. Raises CorruptCacheError."""
    name = mark_of(stage, chunk)
    return parse_cache_file(ChunkMark, scratch.read(name, MAX_MARK_BYTES), scratch.where(name))


def read_small(model: type[Any], scratch: Storage, name: str) -> Any:
    """Read another small file. Raises CorruptCacheError."""
    return parse_cache_file(model, scratch.read(name, MAX_MARK_BYTES), scratch.where(name))


def write_small(scratch: Storage, name: str, value: Strict) -> None:
    """Write a mark or another small file."""
    scratch.write(name, value.model_dump_json().encode() + b"\n")
