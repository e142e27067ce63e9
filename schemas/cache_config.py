"""The configuration of one ``teacher-cache`` job: teacher, corpus, and the signals to store."""

import codecs
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from schemas.strict import Extended, Strict, added

Dtype = Literal["float32", "bfloat16", "float16"]

MAX_COUNT = 10**12  # of records, or of tokens in a shard
MAX_TOKENS = 1 << 24  # of a sequence, and in a forward pass
MAX_CHANNELS = MAX_HEADS = 1 << 20
MAX_LAYERS = 1 << 16
MIN_TEMPERATURE = 0.001


class TeacherConfig(Strict):
    """The teacher: a Hugging Face model folder with its tokenizer."""

    path: str = Field(min_length=1, description="Folder (or hub id, where a hub can be reached) of the teacher model.")
    name: str | None = Field(None, description="Name written into the manifest; default: the last part of `path`.")
    revision: str | None = Field(None, description="Revision, when `path` is a hub id; written into the manifest.")
    dtype: Dtype = Field(
        "bfloat16",
        description="Data type the teacher computes in; bfloat16 is what most weights are published in. CPUs without "
        "bf16 instructions run float32 several times faster.",
    )
    trust_remote_code: bool = Field(
        False, description="Run model code that ships with the weights; off, since it runs with your permissions."
    )


class EngineConfig(Strict):
    """How the teacher is run; none of this affects stored values beyond floating-point noise."""

    kind: Literal["vllm", "transformers"] = Field(
        "vllm", description="`vllm` scores fastest; `transformers` is the reference, and needs no vLLM."
    )
    max_batch_tokens: int = Field(
        8192,
        ge=16,
        le=MAX_TOKENS,
        description="Tokens per forward pass (at least one sequence); 8192 saturate a device, more take memory.",
    )
    head_chunk_rows: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKENS,
        description="Rows of logits that exist at a time; default: as many as fit in half of a GPU's free memory (30 "
        "bytes per logit), at most 4096, and 512 on CPUs.",
    )
    tensor_parallel: int = Field(
        1, ge=1, le=4096, description="vLLM: devices that the model is split over; 1 is fastest if it fits on one."
    )
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="vLLM on GPUs: share of memory for weights, activations and key-value cache; the rest is for the "
        "rows of logits that are captured. By default the cache holds two forward passes, and all else is free.",
    )
    cpu_kv_cache_gib: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="vLLM on CPUs: GiB for its key-value cache; by default it holds two forward passes.",
    )
    device: str = Field(
        "auto", description="transformers engine: `cpu`, `cuda`, `cuda:1`, …; `auto`: a GPU if there is one."
    )
    self_check: Literal["auto", "on", "off"] = Field(
        "auto",
        description="After loading, compare a short sequence with an independent pass of transformers. `auto`: for "
        "teachers of up to 2 B parameters that fit in free memory as float32.",
    )


class SourceConfig(Extended):
    """One source of documents; ``docs/corpora.md`` shows what a file of each format looks like."""

    path: str = Field(
        min_length=1, description="File, archive, or folder to be searched with `pattern`; or a data set on a hub."
    )
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "text", "hf_dataset", "generated", "curated"] = (
        Field(
            "auto",
            description="File format; `auto`: by the names of the files; `hf_dataset`: saved by `save_to_disk`; "
            "`generated`: replies of `teacher-cache generate`, whose token ids and layers are taken as they are; "
            "`curated`: what `teacher-cache curate` has written, with its layers.",
        )
    )
    pattern: str = Field(
        "*",
        description="Glob below `path` when it is a folder or an archive (`**/*.py` searches recursively). `*`, the "
        "default, means all files of an archive, and with `auto` all files below a folder.",
    )
    text_field: str = Field("text", description="Field of a record that holds plain text.")
    messages_field: str = Field("messages", description="Field that holds chat messages; overrides all others.")
    layer: str = Field("base", min_length=1, description="Layer of the data mix: base, code, reasoning, …")
    limit: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Read at most this many records, bad ones included."
    )
    shape: Literal["auto", "messages", "sharegpt", "prompt_completion", "alpaca", "text"] = added(
        "auto", "Layout of a record; `auto`: the first of these, in this order, whose fields the record has."
    )
    encoding: str = added("utf-8", "Encoding of text, JSON and CSV files; a byte order mark overrides it.")
    split: Literal["file", "line", "paragraph"] = added(
        "file", "`text`: one document per file, per non-blank line, or per paragraph (separated by blank lines)."
    )
    zstd_window_log: int = added(
        27, "Largest window of zstd files, 2^n bytes (`zstd --long=n`); 27 is the default of `zstd`.", ge=10, le=31
    )

    @field_validator("encoding")
    @classmethod
    def _is_a_text_encoding(cls, value: str) -> str:
        try:
            "".encode(value)
            codecs.getincrementaldecoder(value)
        except LookupError:  # unknown, or not a text encoding (base64)
            raise ValueError(
                f"{value!r} is not a text encoding; use for example utf-8, utf-16, latin-1, cp1252"
            ) from None
        return value

    @model_validator(mode="after")
    def _split_goes_with_text(self) -> "SourceConfig":
        if self.split != "file" and self.format not in ("auto", "text"):
            raise ValueError(f"split: {self.split} needs format: text (or auto), not {self.format}")
        return self


RESERVED_VARIABLES = frozenset({"messages", "add_generation_prompt"})
"""Chat-template variables that neither a configuration nor a record's arguments may set."""


def _leave_the_chat_alone(value: dict[str, Any]) -> dict[str, Any]:
    if reserved := sorted(value.keys() & RESERVED_VARIABLES):
        raise ValueError(f"{reserved[0]}: comes from each record and cannot be set here")
    return value


TemplateArguments = Annotated[dict[str, Any], AfterValidator(_leave_the_chat_alone)]
"""Arguments of a chat template that a configuration sets."""


class CorpusConfig(Extended):
    """The documents to read and how they become token sequences."""

    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    max_tokens: int = Field(
        2048, ge=2, le=MAX_TOKENS, description="Longest sequence, in tokens; most instruction data fits."
    )
    min_tokens: int = Field(
        2, ge=2, le=MAX_TOKENS, description="Shorter sequences are dropped (counted); one token predicts nothing."
    )
    over_long: Literal["split", "truncate", "drop"] = Field(
        "split",
        description="Treatment of texts longer than `max_tokens` (counted). `split` loses nothing.",
    )
    over_long_chat: Literal["truncate", "drop"] = Field(
        "truncate", description="The same for chats (counted); not split, as later pieces would lack their prompt."
    )
    clean: bool = Field(
        True,
        description="Strip zero-width and control characters and normalise Unicode to NFC, as in what users type.",
    )
    deduplicate: bool = Field(
        True,
        description="Drop documents equal to an earlier one after cleaning (counted): equal cost, less to learn.",
    )
    chat_template: str | None = added(
        None,
        "Chats: a Jinja file, or the name of one of the tokenizer's templates; default: the tokenizer's own.",
        min_length=1,
    )
    chat_template_kwargs: TemplateArguments = added(
        {},
        "Chats: variables for the template (`enable_thinking: false`); a record's chat_template_kwargs override them.",
    )
    roles_to_train: Annotated[list[str], Field(min_length=1)] = added(
        ["assistant"],
        "Chats: roles whose messages are trained on; a message's own `train: true|false` or `weight: 0` overrides it.",
    )
    on_bad_record: Literal["stop", "drop"] = added(
        "stop",
        "Treatment of records that cannot be read or rendered; dropped ones are counted by reason. `stop`, so that a "
        "broken file is noticed.",
    )


class LogitsCapture(Strict):
    """What is stored of each next-token distribution."""

    policy: Literal["top_k", "nucleus"] = Field(
        "top_k",
        description="`top_k`: k entries, to which draws from the tail can be added; `nucleus`: up to k entries.",
    )
    k: int = Field(
        64,
        ge=1,
        le=65535,
        description="Entries per row (`nucleus`: at most). If not set: 16 with `draws` or `final`, which cover the "
        "rest of the mass; 64 without (docs/targets.md).",
    )
    mass: float = Field(
        0.95,
        gt=0,
        le=1,
        description="`nucleus`: the smallest set that reaches this probability; 0.95 teaches nearly as well as k = 64.",
    )
    temperatures: list[float] = Field(
        [1.0, 3.0],
        min_length=1,
        description="Temperatures with a stored log-partition: 1, at which students learn best, and 3, the recipe's.",
    )
    positions: Literal["all", "loss_mask"] = Field(
        "loss_mask", description="Rows to store. vLLM does not apply the head to other rows."
    )

    @field_validator("temperatures")
    @classmethod
    def _positive_and_distinct(cls, value: list[float]) -> list[float]:
        if any(not MIN_TEMPERATURE <= t < 1000 for t in value):
            raise ValueError(f"every temperature must be at least {MIN_TEMPERATURE} and below 1000")
        if len(set(value)) != len(value):
            raise ValueError("temperatures must be distinct")
        return value

    @model_validator(mode="after")
    def _has_unit_temperature(self) -> "LogitsCapture":
        if 1.0 not in self.temperatures:
            raise ValueError("temperatures must contain 1.0, the temperature at which log-probabilities are stored")
        return self


LayerNumber = Annotated[int, Field(strict=True, ge=1, le=MAX_LAYERS)]
LayerFraction = Annotated[float, Field(strict=True, gt=0, le=1)]
Layer = LayerNumber | LayerFraction
"""A decoder layer: its number from 1, or (with a decimal point) a fraction of the depth; 1.0 is the last layer."""


def layer_number(layer: Layer, num_layers: int) -> int:
    """Number of the layer, from 1, in a model of ``num_layers`` layers; not checked against ``num_layers``."""
    return layer if isinstance(layer, int) else max(1, round(layer * num_layers))


class Stride(Strict):
    """Every n-th row of a sequence, starting with its first."""

    every: int = Field(ge=1, le=MAX_TOKENS)


Positions = Literal["all", "loss_mask", "keywords"] | Stride

CODE_KEYWORDS = [  # Python's
    "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del", "elif", "else",
    "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal", "not",
    "or", "pass", "raise", "return", "try", "while", "with", "yield",
]  # fmt: skip


class Quantised(Strict):
    """Quantisation of stored hidden states."""

    dtype: Literal["int8", "int4", "float8_e4m3", "bfloat16", "float16"] = Field(
        "int8",
        description="Types of up to 8 bits have a scale per group of channels and store the largest channels "
        "separately. Mean error of int8: 0.4 % of a row's norm; float8 three times, int4 sixteen times as much.",
    )
    channels_per_scale: int = Field(
        32,
        ge=1,
        le=MAX_CHANNELS,
        description="Up to 8 bits: channels that share a scale; fewer are more precise and take more bytes.",
    )
    channels_per_outlier: int = Field(
        64,
        ge=2,
        le=MAX_CHANNELS,
        description="Up to 8 bits: one in so many channels, the largest of a row, is stored in bfloat16; in its "
        "group's scale it would leave the others one or two quantisation steps.",
    )

    @property
    def has_scales(self) -> bool:
        """Whether values are in units of their group's scale and the largest channels stored separately."""
        return self.dtype in ("int8", "int4", "float8_e4m3")


class HiddenCapture(Quantised):
    """Hidden states: the residual stream after a decoder layer, before the next norm."""

    layers: Annotated[list[Layer], Field(min_length=1)] = Field(
        [0.25, 0.5, 0.75], description="Decoder layers, by number from 1 or as fractions of the depth; the recipe's."
    )
    positions: Positions = Field(
        "loss_mask", description="Rows: `all`, `loss_mask`, `keywords` (rows that predict one), or `{every: n}`."
    )

    def layer_numbers(self, num_layers: int) -> list[int]:
        """Numbers of the layers in a model of ``num_layers``, from 1, ascending: the order in which they are stored."""
        return sorted(layer_number(layer, num_layers) for layer in self.layers)


class AttentionCapture(Strict):
    """Attention weights of one layer: the most focused attention heads, and the largest weights of each row."""

    layer: Layer = Field(
        1.0, description="Decoder layer, by number from 1 or as a fraction of the depth; the last, as in the recipe."
    )
    positions: Positions = Field(
        "keywords", description="Query rows, as for hidden states; `keywords` are the recipe's."
    )
    heads: (
        Annotated[int, Field(ge=1, le=MAX_HEADS)]
        | Annotated[list[Annotated[int, Field(ge=0, le=MAX_HEADS)]], Field(min_length=1)]
    ) = Field(
        3, description="Number of attention heads, those of lowest mean row entropy in a sequence; or a list of heads."
    )
    keys: int = Field(32, ge=1, le=65535, description="Largest weights stored per row; the rest is one remainder.")

    @property
    def n_heads(self) -> int:
        """Attention heads stored per sequence."""
        return self.heads if isinstance(self.heads, int) else len(self.heads)


class DrawsCapture(Strict):
    """Random draws from each next-token distribution: an unbiased target at any temperature.

    `region: tail` complements the exact entries that `logits` stores, `region: all` stands alone (random sampling
    distillation). The rows are those of `logits`.
    """

    n: int = Field(
        50,
        ge=1,
        le=4096,
        description="Draws per row and temperature. If not set: 16 from the tail, which keep 99 % of the gain of "
        "online distillation; 50 from all (docs/targets.md).",
    )
    region: Literal["tail", "all"] = Field(
        "tail",
        description="Draw from the tokens that `logits` does not store, or from the whole distribution.",
    )
    temperatures: list[float] = Field(
        [1.0],
        min_length=1,
        description="Temperatures of the draws, among those of `logits`; at 1 students learn best.",
    )


class FinalCapture(Quantised):
    """The final hidden state, after the last norm, and once per cache the output head: all logits can be rebuilt."""

    positions: Literal["all", "loss_mask"] = Field("loss_mask", description="Rows to store: those that count.")


class CaptureConfig(Strict):
    """The signals to store."""

    # Each field but ``keywords`` is a signal with its settings: ``captured_signals`` takes the names from here.

    logits: LogitsCapture = LogitsCapture()
    draws: DrawsCapture | None = Field(
        None,
        description="If not set: `{n: 16}`, unless `logits.policy` is `nucleus` or `final` is set; `null`: no draws.",
    )
    final: FinalCapture | None = Field(None, description="`{}`: exact targets, at one byte per channel and row.")
    hidden: HiddenCapture | None = Field(None, description="For `losses.lhsm`; off, as it takes most of the bytes.")
    attention: AttentionCapture | None = Field(None, description="For `losses.apc`.")
    keywords: list[Annotated[str, Field(pattern=r"^\w+$")]] = Field(
        CODE_KEYWORDS, min_length=1, description="The words of `positions: keywords`."
    )

    @property
    def signals(self) -> list[str]:
        """Names of the stored signals, without the tokens."""
        return [name for name in captured_signals() if getattr(self, name) is not None]

    @property
    def side_settings(self) -> dict[str, Any]:
        """Settings of the stored side signals (all but tokens and logits), by name."""
        return {name: getattr(self, name) for name in self.signals if name != "logits"}

    def positions(self, signal: str) -> Positions:
        """The rows at which a signal is stored: its own setting, or that of the logits."""
        return getattr(getattr(self, signal), "positions", self.logits.positions)

    @property
    def row_bytes(self) -> int:
        """Memory of one row's logits and draws, at most; bytes."""
        draws = 0 if self.draws is None else 4 * self.draws.n * len(self.draws.temperatures)
        return 4 * (2 * self.logits.k + len(self.logits.temperatures)) + draws

    @model_validator(mode="after")
    def _draws_fit_the_logits(self) -> "CaptureConfig":
        if self.draws is not None and not set(self.draws.temperatures) <= set(self.logits.temperatures):
            raise ValueError(
                f"draws.temperatures {self.draws.temperatures} must be among logits.temperatures "
                f"{self.logits.temperatures}"
            )
        if self.draws is not None and self.draws.region == "tail" and self.logits.policy == "nucleus":
            raise ValueError("draws.region: tail needs logits.policy: top_k; use region: all with a nucleus")
        return self


def captured_signals() -> list[str]:
    """Names of all signals but the tokens, in the order in which they are written."""
    return [name for name in CaptureConfig.model_fields if name != "keywords"]


class CodecConfig(Strict):
    """Precision and compression of stored values; readers take them from the manifest."""

    logprobs: Literal["steps", "bfloat16", "float16", "float32"] = Field(
        "steps", description="Log-probabilities of entries: rounded to steps, or floats at two to three times the size."
    )
    logprob_steps_per_nat: int = Field(
        16,
        ge=1,
        le=1024,
        description="Step size of log-probabilities: 1/n nat; 1/4n above -1, 1/16n above -1/4. 16 costs a KL of 0.0006 "
        "nat; halving the steps takes four bytes a row and gains nothing.",
    )
    scalar_steps_per_nat: int = Field(
        1024,
        ge=16,
        le=65536,
        description="Step size of log-partitions and of realised tokens' log-probabilities: 1/n nat.",
    )
    zstd_level: int = Field(
        1, ge=1, le=19, description="zstd compression level; higher levels save 1 % and decode slower."
    )


class OutputConfig(Strict):
    """Where the cache is written and how it is divided into shards."""

    path: str = Field(min_length=1, description="Folder or object-store prefix (any fsspec URL) of the cache.")
    tokens_per_shard: int = Field(
        262_144,
        ge=1,
        le=MAX_COUNT,
        description="A unit (= shard) is closed when it holds this many tokens; 262,144 make files of about 20 MB, and "
        "a killed run loses minutes.",
    )
    bundle_short_samples: bool = Field(
        True,
        description="Several samples per tar member in shards of at least 64 samples of fewer than 128 tokens on "
        "average (format 1.1); false: one each (format 1.0), at about 1,200 bytes more per sample and signal.",
    )
    encode_threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Threads that encode captured signals, which changes no byte; default: one per core, at most 4, "
        "which keep up with one GPU.",
    )


class Provenance(Strict):
    """Free text stored in the manifest."""

    licence: str = ""
    owner: str = ""
    notes: str = ""


BEST_TARGET = CaptureConfig(logits=LogitsCapture(k=16), draws=DrawsCapture(n=16))
"""The default capture: 99 % of the gain of online distillation, for two thirds of the bytes of 64 entries, which give
87 % (docs/targets.md)."""


class CacheConfig(Strict):
    """The configuration file of ``teacher-cache``.

    Keys of `capture` that are left out default to what was measured to teach best. A manifest states them in full.
    """

    teacher: TeacherConfig
    engine: EngineConfig = EngineConfig()
    corpus: CorpusConfig
    capture: CaptureConfig = BEST_TARGET
    codec: CodecConfig = CodecConfig()
    output: OutputConfig
    provenance: Provenance = Provenance()

    @model_validator(mode="before")
    @classmethod
    def _complete_capture(cls, tree: Any) -> Any:
        return complete_capture(tree)


def complete_capture(tree: Any) -> Any:
    """The settings of a caching run with what they leave open of `capture`. Values of other types pass unchanged."""
    capture = tree.get("capture", {}) if isinstance(tree, dict) else None
    return tree | {"capture": _completed(capture)} if isinstance(capture, dict) else tree


def _completed(capture: dict[str, Any]) -> dict[str, Any]:
    """`capture` of a configuration with defaults for `logits.k` and `draws`. Values of other types pass unchanged."""
    logits, best = capture.get("logits", {}), BEST_TARGET.draws
    if not isinstance(logits, dict) or best is None:
        return capture
    draws_go_with_it = logits.get("policy", "top_k") == "top_k" and capture.get("final") is None
    draws = capture.get("draws", {} if draws_go_with_it else None)
    if isinstance(draws, dict) and draws.get("region", "tail") == "tail":
        draws = {"n": best.n, **draws}
    if logits.get("policy", "top_k") == "top_k" and (draws is not None or capture.get("final") is not None):
        logits = {"k": BEST_TARGET.logits.k, **logits}
    return capture | {"logits": logits, "draws": draws}
