"""Settings of the tasks of a matrix whose models write text, which this project then scores itself."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.cache_config import MAX_COUNT, MAX_TOKENS
from schemas.generate_config import MAX_SAMPLES, Instruction, Probability, Temperature, holding
from schemas.matrix_base import Backend, MatrixTask, Name
from schemas.train_config import FilePath

Samples = Annotated[int, Field(ge=1, le=MAX_SAMPLES)]


class WritingTask(MatrixTask):
    """What these tasks share."""

    PLACES: ClassVar[tuple[str, ...]] = ("data",)

    backend: Backend = Field(
        "hf",
        description="`hf`: transformers, one prompt at a time, so that a text depends on nothing else. `vllm`: many at "
        "a time, and much faster; rounding may turn near-ties over.",
    )
    data: FilePath = Field(description="JSONL file, also as `.gz`.")
    limit: int | None = Field(None, ge=1, le=MAX_COUNT, description="Only the first items.")
    chat: bool = Field(
        False,
        description="Whether prompts are a user's messages, in each model's own chat template; else the model "
        "continues them.",
    )


class CodeTask(WritingTask):
    """Functions that the model writes, run against tests: pass@k (arXiv 2107.03374)."""

    PLACES: ClassVar[tuple[str, ...]] = ("data", "tests")
    LABELS: ClassVar[tuple[str, ...]] = (*MatrixTask.LABELS, "workers")

    kind: Literal["code"]
    ability: Name = Field("code", description="What it tests; tasks of one ability are shown together.")
    data: FilePath = Field(
        description="Problems, JSONL in HumanEval's layout, also as `.gz`: `task_id`, `prompt`, `entry_point`, `test`."
    )
    tests: FilePath | None = Field(
        None, description="Tests to run in place of those in `data`, such as HumanEval+'s: `task_id`, `test`."
    )
    run_generated_code: bool = Field(
        False, description="**Must be set to true: code that the models wrote is run**, in a sandbox."
    )
    samples: Samples = Field(1, description="Texts for each problem.")
    k: list[Samples] = Field([1], min_length=1, max_length=16, description="Of pass@k; the first is compared.")
    temperature: Temperature = Field(0.0, description="0: greedy, the most likely tokens; up to 2.")
    top_p: Probability = Field(1.0, description="Draw from the smallest set of tokens that reaches this probability.")
    seed: int = Field(0, ge=0, le=MAX_COUNT, description="Another seed draws other texts.")
    max_new_tokens: int = Field(512, ge=1, le=MAX_TOKENS, description="Longest text.")
    instruction: Annotated[Instruction, holding("prompt")] = Field(
        "Complete this Python function. Reply with the whole function in one ```python block.\n\n"
        "```python\n{prompt}\n```",
        description="The message of `chat`; `{prompt}` is the problem's.",
    )
    seconds: int = Field(10, ge=1, le=3600, description="Of the CPU, for one text and as many for its tests.")
    workers: int = Field(2, ge=1, le=1024, description="Texts that are tested at a time; changes no result.")
    isolation: Literal["required", "where_possible"] = Field(
        "required",
        description="`required`: no network, nothing but a temporary folder to write to, no other processes, by "
        "Linux's namespaces; where they are not to be had, it is an error. `where_possible`: limits of time, memory "
        "and file size alone are enough; in a container that has nothing to lose.",
    )

    @model_validator(mode="after")
    def _may_run_code(self) -> "CodeTask":
        if not self.run_generated_code:
            raise ValueError("this task runs code that models wrote; set run_generated_code: true to allow that")
        return self

    @model_validator(mode="after")
    def _samples_suffice(self) -> "CodeTask":
        if max(self.k) > self.samples:
            raise ValueError(f"k: pass@{max(self.k)} needs as many texts of a problem; samples is {self.samples}")
        if len({*self.k}) < len(self.k):
            raise ValueError("k: one number is there twice")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples: at temperature 0 all texts of a problem are equal; raise temperature")
        return self


class CodeSummariesTask(WritingTask):
    """What code does, in a sentence: CodeXGLUE's code-to-text (arXiv 2102.04664), smoothed BLEU-4."""

    kind: Literal["code-summaries"]
    ability: Name = Field("summaries", description="What it tests; tasks of one ability are shown together.")
    data: FilePath = Field(
        description="CodeXGLUE's `test.jsonl` of one language, also as `.gz`: `code_tokens`, `docstring_tokens`."
    )
    max_new_tokens: int = Field(64, ge=1, le=MAX_TOKENS, description="Longest text; its first line counts.")
    max_prompt_tokens: int | None = Field(
        None, ge=2, le=MAX_TOKENS, description="Longer prompts lose their middle; null: none is cut."
    )
    instruction: Annotated[Instruction, holding("code")] = Field(
        "Code:\n{code}\n\nWhat this code does, in one short sentence:", description="The prompt; `{code}` is the code."
    )


class LongContextTask(WritingTask):
    """Questions about long documents, whose answers are compared with wanted ones: ROUGE-L."""

    kind: Literal["long-context"]
    ability: Name = Field("long context", description="What it tests; tasks of one ability are shown together.")
    data: FilePath = Field(
        description="JSONL, also as `.gz`: `id`, `wanted`, and `prompt`, or `document` for `instruction`; `cluster` of "
        "items that share a document."
    )
    max_new_tokens: int = Field(512, ge=1, le=MAX_TOKENS, description="Longest answer.")
    max_prompt_tokens: int | None = Field(
        None, ge=2, le=MAX_TOKENS, description="Longer prompts lose their middle; null: none is cut."
    )
    instruction: Annotated[Instruction, holding("document")] = Field(
        "{document}\n\nSummary:", description="The prompt of items that have a `document`."
    )
