"""The configuration of one ``train-student`` run: caches, student, losses, optimiser and loop."""

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from schemas.cache_config import (
    MAX_COUNT,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_TOKENS,
    MIN_TEMPERATURE,
    Dtype,
    Layer,
    LayerNumber,
)
from schemas.strict import Sha256, Strict

Decay = Annotated[float, Field(ge=0, lt=1)]
MAX_PROMPTS = 32
MAX_STEPS = 2**31 - 1  # limit of torch's and transformers' counters
MAX_ROWS = 2**33  # of a run, per process: products with the caches' weights stay within 64 bits
MAX_LOSS_WEIGHT = 1e6
AttentionLayer = Literal["q_proj", "k_proj", "v_proj", "o_proj"]
LinearAttentionLayer = Literal["in_proj_qkv", "in_proj_z", "out_proj"]
FfnLayer = Literal["gate_proj", "up_proj", "down_proj"]
QuantizedLayer = Literal[AttentionLayer, LinearAttentionLayer, FfnLayer]
WeightBits = Literal[2, 3, 4, 8]
GroupSize = Literal[32, 64, 128]
WIDTH_MULTIPLE = 64  # of the channels of an FFN: what matrix kernels and groups of quantised weights divide by
Logger = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]


def _of_home(path: str) -> str:
    """The path with ``~`` and ``~USER`` expanded."""
    if "\0" in path:
        raise ValueError("a path cannot contain a NUL character")
    return os.path.expanduser(path)


FilePath = Annotated[str, Field(min_length=1), AfterValidator(_of_home)]
"""Of a file or folder, or a URL where one is allowed; ``~`` is the home folder."""


class LocalCopiesConfig(Strict):
    """Local copies of a remote cache's shards, shared by all processes and runs on a machine."""

    folder: FilePath = Field(description="A folder on a local disk.")
    max_gib: float = Field(
        100.0,
        gt=0,
        le=2**30,
        description="Limit for all copies, including those being fetched; 100 GiB hold a billion tokens.",
    )

    @property
    def max_bytes(self) -> int:
        """``max_gib`` in bytes."""
        return int(self.max_gib * 2**30)


class CacheShare(Strict):
    """One of the caches to train on, or a part of it."""

    url: FilePath = Field(description="Folder or URL of the cache.")
    weight: float | None = Field(
        None,
        ge=1e-9,
        le=1e9,
        description="Share of the rows, relative to the other caches; if not set, in proportion to each cache's rows.",
    )
    layers: list[str] | None = Field(None, min_length=1, description="Only samples of these layers of the data mix.")
    limit: int | None = Field(None, ge=1, le=MAX_COUNT, description="Only the first so many samples (of these layers).")
    digest: Sha256 | None = Field(
        None, description="Refuse any other cache or state: the manifest's sha256, as `cache-tools inspect` shows it."
    )
    require_signature: FilePath | None = Field(
        None, description="Refuse the cache unless this key signed it, as `data.require_signature`."
    )


class DataConfig(Strict):
    """The caches to train and validate on, and how samples are batched."""

    cache: FilePath | Annotated[list[CacheShare], Field(min_length=1)] = Field(
        description="Folder or URL of the cache to train on, or a list of several that are mixed by weight."
    )
    local_copies: LocalCopiesConfig | None = Field(
        None, description="Prefetch the shards of a remote cache to a local folder."
    )
    on_corrupt: Literal["stop", "skip"] = Field(
        "stop",
        description="Treatment of a sample that cannot be read: end the run, so that the cache gets repaired, or skip "
        "and count it.",
    )
    validation_cache: FilePath | None = Field(
        None, description="A separate cache for validation; excludes `validation_fraction`."
    )
    validation_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of the samples, chosen by key hash, held out for validation; 0: all are trained on.",
    )
    validation_digest: Sha256 | None = Field(None, description="`digest` of the validation cache.")
    require_signature: FilePath | None = Field(
        None,
        description="Refuse caches that this key did not sign: a name trusted by `cache-tools trust`, 64 hex digits or "
        "a .pub file. Caches of a list may name their own key.",
    )
    align: Literal["strict", "border", "all", "classes"] | None = Field(
        None,
        description="For a student with another tokenizer than the cache's: which of its tokens the teacher teaches. "
        "`strict`: those that are tokens of both; `border`: also those that begin where a token of the teacher does; "
        "`all`: also those that begin inside one; `classes`: the same, over classes of tokens, which is closest to one "
        "tokenizer (docs/another-tokenizer.md). Not set: such a student is refused. Caches of the student's own "
        "tokenizer are not affected.",
    )
    retarget_cache: FilePath | None = Field(
        None,
        description="`align`: folder in which texts are kept in the student's tokens, 13 bytes a token; not set: they "
        "are tokenised whenever they are read. With `packing` and worker processes it saves most of the start.",
    )
    shards_mixed: int = Field(
        64,
        ge=1,
        le=MAX_STEPS,
        description="Shards whose samples are shuffled together and that are open at a time. 64 hold 17 M tokens.",
    )
    packing: bool = Field(
        False,
        description="Pack samples into rows of `pack_tokens` instead of padding them: faster if lengths differ; off, "
        "as not every architecture supports it.",
    )
    pack_tokens: int = Field(
        2048,
        ge=2,
        le=MAX_TOKENS,
        description="Length of a packed row; no sample may be longer. The default equals that of `corpus.max_tokens`.",
    )
    num_workers: int = Field(
        0,
        ge=0,
        le=512,
        description="Processes that decode ahead of the training loop; 1 or 2 for a GPU, 0 if training uses all cores.",
    )

    @property
    def shares(self) -> list[CacheShare]:
        """The caches to train on."""
        return [CacheShare(url=self.cache)] if isinstance(self.cache, str) else self.cache

    @model_validator(mode="after")
    def _weights_for_all_or_none(self) -> "DataConfig":
        if len({share.weight is None for share in self.shares}) > 1:
            raise ValueError("set a weight for all caches or for none")
        return self

    @model_validator(mode="after")
    def _nothing_is_kept_that_is_not_aligned(self) -> "DataConfig":
        if self.retarget_cache is not None and self.align is None:
            raise ValueError("retarget_cache needs align")
        return self

    @model_validator(mode="after")
    def _one_kind_of_validation(self) -> "DataConfig":
        if self.validation_cache is not None and self.validation_fraction > 0:
            raise ValueError("set validation_cache or validation_fraction, not both")
        if self.validation_cache is None and self.validation_digest is not None:
            raise ValueError("validation_digest needs validation_cache")
        return self


class FfnConfig(Strict):
    """Channels removed from the FFNs of the model that the student starts from, those that are least active.

    Of a Mixture-of-Experts, from every expert. Set `remove` or `width`.
    """

    remove: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=f"Share of the channels; the width that is left is rounded to a multiple of {WIDTH_MULTIPLE}.",
    )
    width: int | None = Field(
        None,
        ge=WIDTH_MULTIPLE,
        lt=2**31,
        multiple_of=WIDTH_MULTIPLE,
        description=f"Channels that are left, a multiple of {WIDTH_MULTIPLE}, for fast kernels.",
    )
    cache: FilePath | None = Field(
        None,
        description="Cache whose tokens the channels are measured on; default: the first of `data.cache`, without the "
        "samples held out for validation.",
    )
    samples: int = Field(
        512, ge=1, le=MAX_COUNT, description="Samples to measure on, spread over the cache; more for many experts."
    )

    @model_validator(mode="after")
    def _one_size(self) -> "FfnConfig":
        if (self.remove is None) == (self.width is None):
            raise ValueError("set either remove or width")
        return self


class AdapterConfig(Strict):
    """A LoRA adapter: beside each target layer two matrices of low rank are trained, all else is frozen."""

    r: int = Field(16, ge=1, le=65536, description="Rank of the matrices.")
    alpha: int = Field(32, ge=1, le=2**20, description="The adapter's output is scaled by alpha/r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of the adapter's inputs during training.")
    targets: list[QuantizedLayer] | None = Field(
        None, min_length=1, description="Linear layers that get an adapter, by name; default: all of attention and FFN."
    )
    rslora: bool = Field(False, description="Scale by alpha/√r, which keeps large ranks stable (rsLoRA).")
    base_bits: Literal[4] | None = Field(
        None, description="4: hold the frozen weights of linear layers in 4 bits, NF4 (QLoRA). Default: not quantised."
    )
    merge: bool = Field(False, description="Also write `final-merged`, the whole model; later: `train-student merge`.")


class StudentConfig(Strict):
    """The student and its initial weights, from exactly one of `checkpoint`, `config` and `teacher`."""

    checkpoint: FilePath | None = Field(None, description="Start from this model folder.")
    config: FilePath | None = Field(
        None, description="Start from random weights for this `config.json` (file or folder)."
    )
    teacher: FilePath | None = Field(None, description="Start from this model, cut by `from_layers`, `ffn` or both.")
    from_layers: list[Annotated[int, Field(ge=0, lt=MAX_LAYERS)]] | None = Field(
        None, min_length=1, description="Layers kept of `teacher`, in order (depth pruning)."
    )
    ffn: FfnConfig | None = Field(
        None, description="Channels removed from the FFNs of `teacher` or `checkpoint` (docs/pruning.md)."
    )
    adapter: AdapterConfig | None = Field(
        None, description="Off: all weights are trained. `{}`: a LoRA adapter of rank 16 (docs/adapters.md)."
    )
    dtype: Dtype = Field(
        "float32",
        description="Data type of the final model. Weights are always trained in float32; with bfloat16, matrix "
        "products are computed in bfloat16, as with loop.bf16.",
    )
    attention: Literal["auto", "sdpa", "varlen", "flash_attention_2", "eager"] = Field(
        "auto",
        description="Attention implementation. `varlen`: the Flash Attention kernels in torch, for packed rows on "
        "GPUs in bf16. `auto`: that where it fits, else `sdpa`, or `eager` where SDPA would drop a feature.",
    )
    trust_remote_code: bool = Field(
        False, description="Run code that ships with the student or its tokenizer; off, since it has your permissions."
    )

    @model_validator(mode="after")
    def _one_way_to_start(self) -> "StudentConfig":
        if sum(way is not None for way in (self.checkpoint, self.config, self.teacher)) != 1:
            raise ValueError("set exactly one of checkpoint, config, teacher")
        if self.teacher is None and self.from_layers is not None:
            raise ValueError("from_layers needs teacher")
        if self.teacher is not None and self.from_layers is None and self.ffn is None:
            raise ValueError("teacher needs from_layers or ffn; to start from the whole model, set checkpoint")
        if self.config is not None and self.ffn is not None:
            raise ValueError("ffn needs teacher or checkpoint; random weights have no channels to choose from")
        return self


class WeightSchedule(Strict):
    """A loss weight over training progress p in [0, 1]: `start` until p = `hold`, then linear to `end` at p = 1."""

    start: float = Field(ge=0, le=MAX_LOSS_WEIGHT)
    end: float = Field(ge=0, le=MAX_LOSS_WEIGHT)
    hold: float = Field(0.0, ge=0, lt=1, description="Fraction of training during which the weight stays at `start`.")


TargetForm = Literal["top_k", "draws", "final"]
Tail = Literal["bucket", "renormalise", "ignore"]
Divergence = Literal["forward", "reverse", "jsd"]


class TlaConfig(Strict):
    """Token-level logits alignment: a divergence of softened distributions, times temperature squared."""

    weight: WeightSchedule = Field(
        WeightSchedule(start=1.0, end=1.0),
        description="Default: 1 throughout; with `lhsm` or `apc` the recipe's 1 to 0.3, as these take over.",
    )
    temperature: float = Field(
        1.0,
        ge=MIN_TEMPERATURE,
        lt=1000,
        description="One of the temperatures at which the cache stores its target; `final` allows any. At 1 students "
        "end closer to the teacher than at 3, with every form of target measured (docs/targets.md).",
    )
    target: TargetForm | None = Field(
        None,
        description="The signal to learn from; default: the first that the cache has of final, draws, top_k, which "
        "keep 100, 99 and 87 % of the gain of online distillation (docs/targets.md).",
    )
    tail: Tail = Field(
        "bucket",
        description="`top_k`: treatment of the mass that is not stored; all but `bucket` are biased, and teach less.",
    )
    divergence: Divergence = Field(
        "forward",
        description="`forward`: KL(teacher ‖ student), with any target; `reverse`: KL(student ‖ teacher); `jsd`: the "
        "Jensen-Shannon divergence.",
    )
    jsd_beta: float = Field(
        0.5, gt=0, lt=1, description="`jsd`: weight of the teacher in the mixture; 0.5 is symmetric."
    )


class CrossEntropyConfig(Strict):
    """Cross-entropy with the next token of the text (hard labels)."""

    weight: WeightSchedule = Field(
        WeightSchedule(start=0.0, end=0.0),
        description="0: off. Hard labels alone leave a student farther from the teacher than any target at T = 1.",
    )
    rows: Literal["all", "untaught"] = Field(
        "all",
        description="`untaught`: only tokens that no teacher teaches, of a student with another tokenizer "
        "(`data.align`): white space, the student's own template inside replies, tokens without a stored row.",
    )


class AlmConfig(Strict):
    """Approximate likelihood matching: likelihoods of pieces of text that are whole tokens for teacher and student."""

    weight: WeightSchedule = Field(
        WeightSchedule(start=1.0, end=1.0), description="As `tla`'s: both are in nats a token."
    )
    temperature: float = Field(
        100.0,
        ge=1,
        le=10_000,
        description="Likelihoods are compared to the power of 1/temperature; 100 is the published one. The scale of "
        "the loss hardly depends on it.",
    )


class LayerPair(Strict):
    """Two layers to match, numbered from 1."""

    teacher: LayerNumber = Field(description="A layer whose hidden states the cache stores.")
    student: LayerNumber


class LhsmConfig(Strict):
    """Layer-wise hidden state matching: an MSE of normalised hidden states through a learned linear map."""

    weight: WeightSchedule = Field(WeightSchedule(start=0.8, end=0.8), description="The recipe's.")
    direction: Literal["teacher_to_student", "student_to_teacher"] = Field(
        "teacher_to_student", description="The side that the map is applied to; the recipe maps the teacher's."
    )
    pairs: list[LayerPair] | None = Field(
        None, min_length=1, description="Default: every stored layer with the student's at the same relative depth."
    )


class ApcConfig(Strict):
    """Attention pattern consistency: KL(teacher ‖ student) of attention rows, with heads paired by rank of focus."""

    weight: WeightSchedule = Field(
        WeightSchedule(start=0.0, end=0.5, hold=0.2),
        description="The recipe's: 0 for a fifth of training, until the student's attention has formed patterns.",
    )
    student_layer: Layer = Field(
        1.0,
        description="The student's layer, by number from 1 or as a fraction of the depth; the last, as in the cache.",
    )
    student_heads: list[Annotated[int, Field(ge=0, le=MAX_HEADS)]] | None = Field(
        None, min_length=1, description="These attention heads, in the cache's order, instead of the most focused ones."
    )


class AsrConfig(Strict):
    """Activation sparsity: the mean absolute input of the student's down projections."""

    weight: WeightSchedule = Field(WeightSchedule(start=1e-3, end=1e-3), description="The recipe's.")


def _is_off(loss: Any) -> bool:
    """Whether a loss, as raw or validated settings, is absent or has weight 0 throughout."""
    tree = loss.model_dump() if isinstance(loss, Strict) else loss
    weight = tree.get("weight", {}) if isinstance(tree, dict) else tree
    weight = weight.model_dump() if isinstance(weight, Strict) else weight
    return tree is None or (isinstance(weight, dict) and weight.get("start") == 0 == weight.get("end"))


class LossConfig(Strict):
    """The objective: a weighted sum of its terms. A term whose weight is always 0 is not computed.

    `alm`, `lhsm`, `apc` and `asr` are off unless set; `lhsm: {}` has the recipe's weights.
    """

    tla: TlaConfig = TlaConfig()
    cross_entropy: CrossEntropyConfig = CrossEntropyConfig()
    alm: AlmConfig | None = Field(None, description="Off: for students with another tokenizer, beside `tla`.")
    lhsm: LhsmConfig | None = Field(None, description="Off: needs a cache with `capture.hidden`.")
    apc: ApcConfig | None = Field(None, description="Off: needs a cache with `capture.attention`.")
    asr: AsrConfig | None = Field(None, description="Off: for students that are to have sparse activations.")

    @model_validator(mode="before")
    @classmethod
    def _tla_makes_room_for_others(cls, tree: Any) -> Any:
        """TLA's weight decays only with `lhsm` or `apc`: alone, a decaying weight would just lower the logged loss."""
        if not isinstance(tree, dict) or all(_is_off(tree.get(name)) for name in ("lhsm", "apc")):
            return tree
        tla = tree.get("tla", {})
        if isinstance(tla, TlaConfig):
            tla = tla.model_dump(exclude_unset=True)
        if not isinstance(tla, dict) or "weight" in tla:
            return tree
        return tree | {"tla": tla | {"weight": {"start": 1.0, "end": 0.3}}}

    @model_validator(mode="after")
    def _something_to_learn(self) -> "LossConfig":
        terms = (getattr(self, name) for name in type(self).model_fields if name != "asr")
        if all(_is_off(term) for term in terms):
            raise ValueError("at least one loss other than asr must have a weight above 0")
        return self


class OptimizerConfig(Strict):
    """AdamW with a cosine schedule after a linear warm-up."""

    lr: float = Field(
        2e-5,
        gt=0,
        le=10,
        description="The recipe's, for a pre-trained student; use 3e-4 for one that is cut from its teacher.",
    )
    warmup_steps: int = Field(
        0, ge=0, le=MAX_STEPS, description="0, as any other number may exceed a short run; the recipe has 1000."
    )
    weight_decay: float = Field(0.01, ge=0, le=100, description="The recipe's.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="The recipe's, and AdamW's own.")
    eps: float = Field(1e-8, ge=1e-15, le=1, description="The recipe's, and AdamW's own.")
    max_grad_norm: float = Field(1.0, gt=0, le=1e9, description="Gradients are clipped to this norm; the recipe's.")


class SamplesConfig(Strict):
    """Texts that the student continues, greedily, before training, at every validation and at the end."""

    prompts: (
        Annotated[int, Field(ge=1, le=MAX_PROMPTS)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=4000)]], Field(min_length=1, max_length=MAX_PROMPTS)
        ]
    ) = Field(
        4,
        description="Beginnings of so many of the first cache's texts: what comes before the first token to learn, at "
        "most 64 tokens; or texts of your own.",
    )
    tokens: int = Field(48, ge=1, le=1024, description="Tokens of a continuation, at most.")


class LoopConfig(Strict):
    """Length of training, batch, processes, checkpoints and validation. `max_steps` overrides `epochs`."""

    epochs: float = Field(1.0, gt=0, le=10_000, description="Passes over the data; 1: each sample once.")
    max_steps: Steps | None = Field(None, description="Optimiser steps; default: as many as `epochs` take.")
    micro_batch_size: int = Field(
        1,
        ge=1,
        le=65536,
        description="Samples (or packed rows) per device and forward pass; 1, the recipe's, fits most devices.",
    )
    gradient_accumulation: int = Field(
        1, ge=1, le=65536, description="Forward passes per step and device; 1: every pass is a step. The recipe has 32."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the data's order and of random weights.")
    bf16: bool = Field(
        False, description="bf16 autocast; off, since it is several times slower on CPUs without bf16 instructions."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory for a third more time."
    )
    compile: bool = Field(
        False, description="Compile the student's layers with torch.compile; off, since compiling takes minutes."
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="Under torchrun: each process holds the whole student (`ddp`, DistributedDataParallel), or a shard "
        "of its weights, gradients and optimiser states (`fsdp`, FSDP2).",
    )
    cpu_offload: bool = Field(False, description="`fsdp`: keep the shards in host memory and update them there.")
    log_every: Steps = Field(1, description="Steps between two lines of metrics.")
    log_gradient_norms: bool = Field(
        False, description="Also log the gradient norm of each weighted loss term; costs one backward pass per term."
    )
    save_every: Steps = Field(500, description="Steps between two checkpoints: the most that a killed run loses.")
    keep_checkpoints: Steps = Field(2, description="Newest checkpoints to keep: one more than needed to resume.")
    validate_every: Steps = Field(500, description="Steps between two validations (if there is validation data).")
    early_stopping_patience: Steps | None = Field(
        None, description="Validations without improvement before stopping; default: never, as a short run may recover."
    )
    resume: bool = Field(True, description="Continue from the newest checkpoint in the output, if there is one.")
    report_to: list[Logger] = Field(
        ["tensorboard"],
        description="Loggers that get every line of metrics beside `metrics.jsonl`: `tensorboard`, `wandb`, `mlflow`, "
        "`trackio` (docs/loggers.md).",
    )
    project: Annotated[str, Field(pattern=r"^\w[\w .-]{0,99}$")] = Field(
        "train-student", description="Name of the W&B or Trackio project, or MLflow experiment."
    )
    samples: SamplesConfig | None = Field(
        None, description="Off: continuations of a few prompts, in `samples.jsonl`, for `train-student report`."
    )
    scratch: FilePath | None = Field(
        None,
        description="Where `output` is a URL: a folder on a disk of each machine for the run's files there; default: "
        "one in the machine's folder for temporary files (`TMPDIR`).",
    )

    @model_validator(mode="after")
    def _rows_can_be_counted(self) -> "LoopConfig":
        rows = (self.max_steps or 1) * self.micro_batch_size * self.gradient_accumulation
        if rows > MAX_ROWS:
            raise ValueError(
                f"max_steps × micro_batch_size × gradient_accumulation are {rows} rows, the limit is {MAX_ROWS}"
            )
        return self

    @model_validator(mode="after")
    def _offload_what_is_sharded(self) -> "LoopConfig":
        if self.cpu_offload and self.parallel != "fsdp":
            raise ValueError("cpu_offload needs parallel: fsdp")
        if self.log_gradient_norms and self.parallel == "fsdp":
            raise ValueError("log_gradient_norms needs parallel: ddp; FSDP does not give gradients of single terms")
        if self.samples is not None and self.parallel == "fsdp":
            raise ValueError("samples needs parallel: ddp; rank 0 generates by itself, and has a shard of the student")
        return self

    @model_validator(mode="after")
    def _loggers_are_named_once(self) -> "LoopConfig":
        if len(set(self.report_to)) < len(self.report_to):
            raise ValueError(f"report_to: {', '.join(self.report_to)}: each logger once")
        return self


class ActivationsConfig(Strict):
    """Rounding of the inputs of quantised layers during training. Set `bits`, or `clip` and, if rounded, `levels`."""

    bits: Literal[4, 8] | None = Field(
        None, description="To so many bits with one scale a token, as vLLM quantises activations dynamically."
    )
    clip: float | None = Field(
        None,
        gt=50,
        le=100,
        description="Experimental: clip each input at this percentile of its magnitudes in the calibration; the recipe "
        "has 99.9. No engine serves it, and with three bits students collapse (docs/three-bits.md).",
    )
    levels: int | None = Field(
        None, ge=3, le=255, description="`clip`: round to so many values, an odd number, evenly spaced around 0."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "ActivationsConfig":
        if (self.bits is None) == (self.clip is None):
            raise ValueError("set either bits or clip")
        if self.levels is not None and (self.clip is None or self.levels % 2 == 0):
            raise ValueError("levels needs clip, and must be odd: 0 is one of them")
        return self


class QuantizationConfig(Strict):
    """Training with weights of few bits, from the start; the student is written that way (docs/three-bits.md)."""

    bits: WeightBits = Field(3, description="Bits of a weight.")
    group_size: GroupSize = Field(
        128, description="Neighbouring inputs that share a scale of 16 bits; must divide the inputs of every layer."
    )
    targets: list[QuantizedLayer] | None = Field(
        None, min_length=1, description="Linear layers that are quantised, by name; default: all of attention and FFN."
    )
    calibration_samples: int = Field(
        512,
        ge=1,
        le=MAX_COUNT,
        description="Samples of the first of `data.cache` that scales are chosen on, without those held out for "
        "validation.",
    )
    scale: Literal["frozen", "learned"] = Field(
        "frozen", description="`learned`: scales are trained with the weights (LSQ)."
    )
    scale_lr: float = Field(1e-4, gt=0, le=10, description="`learned`: peak learning rate of scales; no decay.")
    activations: ActivationsConfig | None = Field(
        None, description="Default: left alone, as engines serve 3-bit weights with 16-bit activations."
    )
    formats: list[Literal["dense", "container"]] = Field(
        ["dense"],
        description="Packed folders to write beside `final`, whose weights are the same in 16 bits: `final-dense`, "
        "smallest; `final-container`, for kernels that take 4 bits.",
    )
    check: bool = Field(
        True, description="Generate from the packed folders in transformers and, if installed, vLLM; see `export`."
    )


class TrainConfig(Strict):
    """The configuration file of ``train-student``."""

    data: DataConfig
    student: StudentConfig
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()
    quantization: QuantizationConfig | None = Field(None, description="Off: weights of 16 bits.")
    output: FilePath = Field(
        description="For checkpoints, metrics and the final model: a folder that all machines of a run share, or the "
        "URL of a place in an object store."
    )

    @model_validator(mode="after")
    def _flash_attention_takes_16_bit(self) -> "TrainConfig":
        flash = self.student.attention.startswith("flash")
        if flash and not self.loop.bf16 and self.student.dtype != "bfloat16":
            raise ValueError(
                f"student.attention: {self.student.attention} takes 16-bit inputs only, and this run computes in "
                "float32; set loop.bf16: true, or student.attention: sdpa"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_read_in_compiled_layers(self) -> "TrainConfig":
        if self.loop.compile and (self.losses.apc is not None or self.losses.asr is not None):
            raise ValueError("loop.compile: losses.apc and losses.asr record inside layers; leave them or it out")
        return self

    @model_validator(mode="after")
    def _quantised_weights_are_not_kept(self) -> "TrainConfig":
        if self.quantization is None:
            return self
        if self.loop.parallel == "fsdp" and not self.loop.gradient_checkpointing:
            raise ValueError(
                "quantization with loop.parallel: fsdp needs loop.gradient_checkpointing: true; without it every "
                "process keeps the quantised weights of all layers until the backward pass"
            )
        if self.student.dtype == "float16":
            raise ValueError("quantization: student.dtype float16 cannot hold every scale; set it to bfloat16")
        return self

    @model_validator(mode="after")
    def _adapters_beside_weights_that_stay(self) -> "TrainConfig":
        adapter = self.student.adapter
        if adapter is None:
            return self
        if self.quantization is not None:
            raise ValueError(
                "student.adapter: weights under quantization are all trained; leave one of the two out, or set "
                "student.adapter.base_bits: 4 for frozen weights of 4 bits"
            )
        if adapter.base_bits is not None and (self.loop.parallel == "fsdp" or self.loop.compile):
            raise ValueError(
                "student.adapter.base_bits: weights of 4 bits are neither sharded nor compiled; set loop.parallel: ddp "
                "and loop.compile: false, or leave base_bits out"
            )
        return self

    @property
    def kept_checkpoint(self) -> str | None:
        """The model folder to start from as it is; None if initial weights are to be written."""
        return self.student.checkpoint if self.student.ffn is None and self.quantization is None else None
