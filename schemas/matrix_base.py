"""What every task of a matrix has, the models, and how they are run."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.cache_config import MAX_TOKENS, Dtype
from schemas.strict import Strict
from schemas.train_config import FilePath

Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f/\\]+$")]
Backend = Literal["hf", "vllm"]


class MatrixModel(Strict):
    """A model of the matrix."""

    name: Name = Field(description="As the report calls it; unique.")
    folder: FilePath = Field(description="Folder of a Hugging Face model with its tokenizer.")
    arm: str = Field(
        "", max_length=80, description="Students of one arm differ by training seed only; empty: a model on its own."
    )
    seed: int | None = Field(None, description="Training seed, for a model with an arm.")
    trust_remote_code: bool = Field(False, description="Run code that ships with the model or its tokenizer.")


class HfSettings(Strict):
    """How transformers runs a model, on a GPU if there is one."""

    dtype: Dtype = Field("float32", description="Of weights and activations.")
    batch_size: int = Field(8, ge=1, le=4096, description="Sequences of one forward pass.")
    max_length: int | None = Field(
        None, ge=2, le=MAX_TOKENS, description="Longest sequence, tokens; default: the model's own limit."
    )


class VllmSettings(Strict):
    """How vLLM runs a model."""

    dtype: Dtype = Field("float32", description="Of weights and activations.")
    max_length: int | None = Field(
        None, ge=2, le=MAX_TOKENS, description="Longest sequence, tokens; default: the model's own limit."
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="On GPUs: share of memory for weights, activations and key-value cache."
    )
    cpu_kv_cache_gib: int = Field(2, ge=1, le=1 << 20, description="On CPUs: GiB for the key-value cache.")
    eager: bool = Field(False, description="Without compilation and CUDA graphs: starts sooner, runs slower.")
    tensor_parallel: int = Field(1, ge=1, le=1024, description="GPUs that share a model.")


class Backends(Strict):
    """Settings of what runs models."""

    hf: HfSettings = HfSettings()
    vllm: VllmSettings = VllmSettings()


class MatrixTask(Strict):
    """What every task has."""

    PLACES: ClassVar[tuple[str, ...]] = ()  # settings that are paths: what is in the files decides, not where they are
    LABELS: ClassVar[tuple[str, ...]] = ("name", "ability", "measure")  # settings that decide no result of an item

    name: Name = Field(description="As the report calls it; unique.")
    ability: Name = Field(description="What it tests; tasks of one ability are shown together.")
