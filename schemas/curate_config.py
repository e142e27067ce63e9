"""The configuration of one ``teacher-cache curate`` job: sources, steps in their order, and where the result goes."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.cache_config import CorpusConfig, SourceConfig, TeacherConfig
from schemas.curate_steps import StepSettings
from schemas.strict import Strict

MAX_STEPS = 64
MAX_SHARD_RECORDS = 1 << 16


class TokenizerConfig(Strict):
    """The tokenizer that counts tokens: the teacher's."""

    path: str = Field(min_length=1, description="Folder (or hub id) with the tokenizer.")
    revision: str | None = Field(None, description="Revision, when `path` is a hub id.")
    trust_remote_code: bool = Field(False, description="Run code that ships with the tokenizer.")

    def as_teacher(self) -> TeacherConfig:
        """As the loaders of tokenizers take it."""
        return TeacherConfig(path=self.path, revision=self.revision, trust_remote_code=self.trust_remote_code)


class InputConfig(Strict):
    """The records to choose from."""

    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    clean: bool = Field(True, description="As in `corpus`. Generated replies are left as they are.")
    roles_to_train: Annotated[list[str], Field(min_length=1)] = Field(["assistant"], description="As in `corpus`.")
    on_bad_record: Literal["stop", "drop"] = Field(
        "stop", description="Records that cannot be read: `stop`, or `drop` and keep them among what left."
    )

    def as_corpus(self) -> CorpusConfig:
        """The settings that a corpus shares."""
        return CorpusConfig(sources=self.sources, clean=self.clean, roles_to_train=self.roles_to_train)


class CurationOutput(Strict):
    """Where the result is written."""

    path: str = Field(min_length=1, description="Folder or object-store prefix (any fsspec URL) of the curated corpus.")
    scratch: str | None = Field(
        None,
        min_length=1,
        description="Folder for what is needed on the way, removed at the end; about twice the size of the input. "
        "Default: beside `path`, with `.scratch` appended; needed if `path` is a URL.",
    )
    records_per_shard: int = Field(
        8192,
        ge=1,
        le=MAX_SHARD_RECORDS,
        description="Records of the input that are read and judged at a time by a worker; a shard is what stays of "
        "them. Fewer if they are long: 64 MB of text.",
    )


class CurateConfig(Strict):
    """The configuration file of ``teacher-cache curate``."""

    input: InputConfig
    tokenizer: TokenizerConfig
    steps: Annotated[list[StepSettings], Field(min_length=1, max_length=MAX_STEPS)] = Field(
        description="What is done, in this order."
    )
    output: CurationOutput
