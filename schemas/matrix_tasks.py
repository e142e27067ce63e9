"""Settings of the tasks of a matrix that this project runs itself: a model writes text, and the text is scored."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.cache_config import MAX_COUNT, MAX_TOKENS
from schemas.generate_config import MAX_SAMPLES, Instruction, Probability, Temperature, holding
from schemas.strict import Strict
from schemas.train_config import FilePath

TaskName = Annotated[str, Field(min_length=1, max_length=64)]
Samples = Annotated[int, Field(ge=1, le=MAX_SAMPLES)]


class TextGeneration(Strict):
    """How the models of a matrix write."""

    backend: Literal["hf", "vllm"] = Field(
        "hf",
        description="`hf`: transformers, one prompt at a time, so that a text depends on nothing else. `vllm`: many at "
        "a time, and much faster; rounding may turn near-ties over.",
    )
    batch_size: int = Field(
        64,
        ge=1,
        le=4096,
        description="Texts that are written at a time: `hf`, of one prompt; `vllm`, of several, which a killed run "
        "writes again.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the weights; `auto`: the model's own."
    )
    device: str = Field("auto", min_length=1, description="`hf`: `cpu`, `cuda`, …; `auto`: a GPU if there is one.")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, lt=1, description="`vllm` on GPUs: share of memory for weights, activations and key-value cache."
    )
    cpu_kv_cache_gib: int = Field(2, ge=1, le=1 << 20, description="`vllm` on CPUs: GiB for its key-value cache.")
    trust_remote_code: bool = Field(False, description="Run code that ships with the models.")


class WritingTask(Strict):
    """What tasks share whose models write text."""

    path: FilePath = Field(description="JSONL file, also as `.gz`.")
    limit: int | None = Field(None, ge=1, le=MAX_COUNT, description="Only the first so many items.")
    prompt: Literal["continue", "chat"] = Field(
        "continue",
        description="`continue`: the model continues the text. `chat`: it is a user's message, in each model's own "
        "chat template.",
    )

    @property
    def files(self) -> list[str]:
        """The data files that decide the result."""
        return [self.path]


class CodeGenerationTask(WritingTask):
    """Functions that the model writes, run against tests: pass@k (arXiv 2107.03374)."""

    task: Literal["code_generation"]
    name: TaskName = Field("code generation", description="In the report.")
    path: FilePath = Field(
        description="Problems in HumanEval's layout, JSONL, also as `.gz`: `task_id`, `prompt`, `entry_point`, `test`."
    )
    tests_path: FilePath | None = Field(
        None, description="Tests to run in place of those in `path`, such as HumanEval+'s: `task_id`, `test`."
    )
    run_generated_code: bool = Field(
        False, description="**Must be set to true: code that the models wrote is run**, in a sandbox."
    )
    samples: Samples = Field(1, description="Texts for each problem.")
    k: list[Samples] = Field([1], min_length=1, max_length=16, description="Of pass@k; the first is compared.")
    temperature: Temperature = Field(0.0, description="0: greedy, the one most likely text; up to 2.")
    top_p: Probability = Field(1.0, description="Draw from the smallest set of tokens that reaches this probability.")
    seed: int = Field(0, ge=0, le=MAX_COUNT)
    max_new_tokens: int = Field(512, ge=1, le=MAX_TOKENS, description="Longest text.")
    instruction: Annotated[Instruction, holding("prompt")] = Field(
        "Complete this Python function. Reply with the whole function in one ```python block.\n\n"
        "```python\n{prompt}```",
        description="`prompt: chat`: the message; `{prompt}` is the problem's.",
    )
    seconds: int = Field(10, ge=1, le=3600, description="Of the CPU, for one text and its tests.")
    workers: int = Field(2, ge=1, le=1024, description="Texts that are tested at a time; changes no result.")
    isolation: Literal["required", "where_possible"] = Field(
        "required",
        description="`required`: no network, nothing but a temporary folder to write to, no other processes, by "
        "Linux's namespaces; where they are not to be had, it is an error. `where_possible`: limits of time, memory "
        "and file size alone are enough; in a container that has nothing to lose.",
    )

    @property
    def files(self) -> list[str]:
        """See WritingTask."""
        return [self.path] if self.tests_path is None else [self.path, self.tests_path]

    @model_validator(mode="after")
    def _may_run_code(self) -> "CodeGenerationTask":
        if not self.run_generated_code:
            raise ValueError("this task runs code that models wrote; set run_generated_code: true to allow that")
        return self

    @model_validator(mode="after")
    def _samples_suffice(self) -> "CodeGenerationTask":
        if max(self.k) > self.samples:
            raise ValueError(f"k: pass@{max(self.k)} needs as many texts of a problem; samples is {self.samples}")
        if len({*self.k}) < len(self.k):
            raise ValueError("k: one number is there twice")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples: at temperature 0 all texts of a problem are equal; raise temperature")
        return self


class CodeSummariesTask(WritingTask):
    """What code does, in a sentence: CodeXGLUE's code-to-text, smoothed BLEU-4."""

    task: Literal["code_summaries"]
    name: TaskName = Field("code summaries", description="In the report.")
    path: FilePath = Field(
        description="CodeXGLUE's `test.jsonl` of one language, also as `.gz`: `code_tokens`, `docstring_tokens`."
    )
    max_new_tokens: int = Field(64, ge=1, le=MAX_TOKENS, description="Longest text, of which the first line counts.")
    max_prompt_tokens: int | None = Field(
        None, ge=2, le=MAX_TOKENS, description="Longer prompts lose their middle; null: they are refused by the model."
    )
    instruction: Annotated[Instruction, holding("code")] = Field(
        "Code:\n{code}\n\nWhat this code does, in one short sentence:", description="The prompt; `{code}` is the code."
    )


class LongContextTask(WritingTask):
    """Questions about long documents, answers compared with wanted ones: ROUGE-L."""

    task: Literal["long_context"]
    name: TaskName = Field("long context", description="In the report.")
    path: FilePath = Field(
        description="JSONL, also as `.gz`: `id`, `wanted`, and `prompt`, or `document` for `instruction`; `cluster` "
        "if items share a document."
    )
    max_new_tokens: int = Field(512, ge=1, le=MAX_TOKENS, description="Longest answer.")
    max_prompt_tokens: int | None = Field(
        None, ge=2, le=MAX_TOKENS, description="Longer prompts lose their middle; null: they are refused by the model."
    )
    instruction: Annotated[Instruction, holding("document")] = Field(
        "{document}\n\nSummary:", description="The prompt of items that have a `document`."
    )
