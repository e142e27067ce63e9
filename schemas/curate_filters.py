"""Settings of the steps of a curation that judge a record by its own text, and of the one that scores it."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.cache_config import MAX_TOKENS, SourceConfig, TeacherConfig
from schemas.strict import Strict

Name = Annotated[str, Field(min_length=1, max_length=256)]
Share = Annotated[float, Field(ge=0, le=1)]
MAX_BINS = 64


class OfLayers(Strict):
    """A step that may leave layers of the data mix alone."""

    layers: list[Name] | None = Field(
        None, min_length=1, description="Layers of the data mix that the step applies to; null: all."
    )


class EvaluationSet(Strict):
    """Items that no record may contain, read from files like a corpus's."""

    name: Annotated[str, Field(pattern=r"^[\w.+-]{1,64}$")] = Field(description="What reasons call the set.")
    path: str = Field(min_length=1, description="File, archive, or folder to be searched with `pattern`.")
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text", "hf_dataset"] = Field(
        "auto", description="As of a corpus's source."
    )
    pattern: str = Field("*", description="As of a corpus's source.")
    encoding: str = Field("utf-8", description="As of a corpus's source.")
    split: Literal["file", "line", "paragraph"] = Field("file", description="As of a corpus's source.")
    fields: list[Name] = Field(
        ["text"],
        min_length=1,
        description="Fields of an item that are looked for, each on its own (`question`, `prompt`, `test`); lists and "
        "objects in them are joined. Text files have `text`.",
    )
    id: Name | None = Field(None, description="Field that names an item in reasons; null: its file and number.")
    kind: Literal["text", "code"] = Field("text", description="`text`: 13 words in a row; `code`: 8.")
    words: int | None = Field(None, ge=5, le=64, description="Another number of words in a row than `kind` says.")

    @property
    def ngram(self) -> int:
        """Words in a row that are looked for."""
        return self.words or (13 if self.kind == "text" else 8)

    def as_source(self) -> SourceConfig:
        """The settings that a corpus's source shares."""
        return SourceConfig.model_validate(
            {name: getattr(self, name) for name in ("path", "format", "pattern", "encoding", "split")}
        )


class DecontaminateStep(OfLayers):
    """Records that contain items of evaluation sets leave: n-grams of words, case and punctuation folded."""

    step: Literal["decontaminate"]
    sets: list[EvaluationSet] = Field(min_length=1, max_length=256)
    min_share: Share = Field(
        0.1,
        description="Of a field's n-grams, at least this share (and at least one) must be in a record; 0: one is "
        "enough, which common phrases are.",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> "DecontaminateStep":
        names = [one.name for one in self.sets]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"sets: two are named {twice[0]}")
        return self


class LanguageStep(OfLayers):
    """Records whose learned text is in other languages leave. Code, formulas and addresses are not looked at."""

    step: Literal["language"]
    keep: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z]+)?$")]] = Field(
        min_length=1, description="Languages that stay, as ISO 639 codes (`en`, `zh`)."
    )
    min_probability: Share = Field(0.5, description="Probability that it is one of them, at least.")
    min_letters: int = Field(
        40, ge=1, le=10_000, description="Texts with fewer letters outside code stay: too few to tell."
    )


class BrokenTextStep(OfLayers):
    """Texts that were decoded wrongly (`â€™` for `’`) are repaired or leave; those with damage beyond repair leave."""

    step: Literal["broken_text"]
    mojibake: Literal["fix", "drop"] = Field(
        "fix", description="`fix`: repaired where possible; generated replies leave, as their token ids are learned."
    )
    max_replacement_share: Share = Field(0, description="Characters that are U+FFFD, of all, at most.")
    max_control_share: Share = Field(0, description="Control characters but tab and newline, of all, at most.")


class LengthStep(OfLayers):
    """Records with too few or too many learned tokens leave."""

    step: Literal["length"]
    min_tokens: int = Field(1, ge=0, le=MAX_TOKENS, description="Learned tokens, at least.")
    max_tokens: int = Field(MAX_TOKENS, ge=1, le=MAX_TOKENS, description="Learned tokens, at most.")

    @model_validator(mode="after")
    def _is_a_range(self) -> "LengthStep":
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens: {self.min_tokens} is more than max_tokens, {self.max_tokens}")
        return self


class CodeStep(OfLayers):
    """Records whose reply holds no Python that parses, with a function, class or loop, leave."""

    step: Literal["code"]
    other_languages: Literal["drop", "keep"] = Field(
        "drop", description="Replies with code in other languages only, as its fences are labelled (counted apart)."
    )


class RewardEngine(Strict):
    """What runs the reward model."""

    kind: Literal["transformers", "vllm"] = Field("transformers", description="Scores are equal to 1e-3 in float32.")
    batch_tokens: int = Field(16384, ge=1, le=1 << 24, description="Tokens of a batch, padding included.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="vLLM: share of the GPU's memory.")
    cpu_kv_cache_gib: int = Field(4, ge=1, le=4096, description="vLLM on CPUs: memory for keys and values.")
    eager: bool = Field(False, description="vLLM: no CUDA graphs.")


class RewardStep(OfLayers):
    """The best share of the records by a reward model, within each source and length."""

    step: Literal["reward"]
    model: TeacherConfig = Field(description="The reward model: any sequence-classification model.")
    engine: RewardEngine = RewardEngine()
    label: int | None = Field(
        None, ge=0, le=1 << 20, description="Output that is the score; null: of a model with one, that one."
    )
    max_tokens: int = Field(
        4096, ge=8, le=MAX_TOKENS, description="Longer inputs are cut at the left, so that the reply's end is read."
    )
    share: float = Field(0.3, gt=0, le=1, description="Share that stays of the records of a source and length.")
    bins: list[Annotated[int, Field(ge=1, le=MAX_TOKENS)]] = Field(
        [64, 128, 256, 512, 1024, 2048],
        max_length=MAX_BINS,
        description="Rising limits between lengths, in learned tokens: the first bin is below the first. Without "
        "bins, many models choose length.",
    )

    @model_validator(mode="after")
    def _bins_rise(self) -> "RewardStep":
        if any(low >= high for low, high in zip(self.bins, self.bins[1:], strict=False)):
            raise ValueError("bins: must rise")
        return self


FilterSettings = DecontaminateStep | LanguageStep | BrokenTextStep | LengthStep | CodeStep | RewardStep
