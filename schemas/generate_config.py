"""The configuration of one ``teacher-cache generate`` job: generator, prompts, sampling, and what is kept apart."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from schemas.cache_config import (
    MAX_COUNT,
    MAX_TOKENS,
    CorpusConfig,
    SourceConfig,
    TeacherConfig,
    TemplateArguments,
)
from schemas.strict import Strict

MAX_SAMPLES = 4096  # of a prompt
MAX_SHARD_REPLIES = 1 << 20


def _greedy_or_random(value: float) -> float:
    if 0 < value < MIN_TEMPERATURE:
        raise ValueError(f"0 (greedy), or from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}")
    return value


MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0  # what vLLM takes as they are
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE), AfterValidator(_greedy_or_random)]
Probability = Annotated[float, Field(gt=0, le=1)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]

REFUSALS = [
    "i'm sorry, but",
    "i am sorry, but",
    "i'm sorry, i can",
    "i apologize, but",
    "i can't help with",
    "i can't assist",
    "i cannot help with",
    "i cannot assist",
    "i cannot provide",
    "i can't provide",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "as an ai language model",
]


class GenerationEngine(Strict):
    """How the generator is run."""

    kind: Literal["vllm", "transformers"] = Field(
        "vllm",
        description="`vllm` generates at full speed; `transformers` is the reference, one reply at a time. Their "
        "random numbers differ.",
    )
    max_sequences: int = Field(
        256, ge=1, le=65536, description="vLLM: replies that are written at a time; more take more memory."
    )
    tensor_parallel: int = Field(1, ge=1, le=4096, description="vLLM: devices that the model is split over.")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, lt=1, description="vLLM on GPUs: share of memory for weights, activations and key-value cache."
    )
    cpu_kv_cache_gib: int = Field(4, ge=1, le=1 << 20, description="vLLM on CPUs: GiB for its key-value cache.")
    eager: bool = Field(
        False, description="vLLM: no compilation, no CUDA graphs. Starts sooner and generates more slowly."
    )
    device: str = Field(
        "auto", description="transformers engine: `cpu`, `cuda`, `cuda:1`, …; `auto`: a GPU if there is one."
    )


class SamplingConfig(Strict):
    """How replies are drawn."""

    samples: int = Field(1, ge=1, le=MAX_SAMPLES, description="Replies to each prompt.")
    temperature: Temperature = Field(
        1.0,
        description="1 draws from the generator's own distribution; 0 takes the most likely token (greedy); up to 2.",
    )
    top_p: Probability = Field(1.0, description="Draw from the smallest set of tokens that reaches this probability.")
    top_k: int = Field(0, ge=0, le=1 << 24, description="Draw from this many tokens; 0: from all.")
    max_new_tokens: int = Field(
        1024, ge=1, le=MAX_TOKENS, description="Longest reply, in tokens; longer ones are kept as `truncated`."
    )
    stop: list[Stop] = Field(
        [],
        max_length=64,
        description="More tokens that end a reply, as they are written (`</answer>`); those of the model and of its "
        "chat template always do.",
    )


class SamplingOverride(Strict):
    """What one layer of the data mix has different from `sampling`."""

    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 24)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    stop: Annotated[list[Stop], Field(max_length=64)] | None = None


class PromptsConfig(Strict):
    """The prompts, and how they become token ids."""

    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    max_tokens: int = Field(2048, ge=1, le=MAX_TOKENS, description="Longer prompts are dropped (counted), never cut.")
    text: Literal["ask", "continue"] = Field(
        "ask",
        description="Prompts that are plain text: `ask` makes them a user's message, `continue` has it continued.",
    )
    replies: Literal["refuse", "replace"] = Field(
        "refuse",
        description="Records that end with a reply: `replace` leaves it out, so that the generator's takes its place.",
    )
    clean: bool = Field(True, description="As in `corpus`.")
    deduplicate: bool = Field(True, description="Drop prompts equal to an earlier one after cleaning (counted).")
    chat_template: str | None = Field(None, min_length=1, description="As in `corpus`.")
    chat_template_kwargs: TemplateArguments = Field({}, description="As in `corpus`.")
    on_bad_record: Literal["stop", "drop"] = Field("stop", description="As in `corpus`.")

    @field_validator("sources")
    @classmethod
    def _are_not_generated(cls, value: list[SourceConfig]) -> list[SourceConfig]:
        if any(source.format == "generated" for source in value):
            raise ValueError("format: generated: replies are no prompts; give the prompts that they were made from")
        return value

    def as_corpus(self) -> CorpusConfig:
        """The settings that a corpus shares."""
        return CorpusConfig(
            sources=self.sources,
            clean=self.clean,
            deduplicate=self.deduplicate,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            on_bad_record=self.on_bad_record,
        )


class RejectConfig(Strict):
    """Replies that are kept with a reason and never trained on, beside those that are truncated or empty."""

    repeated_tokens: int | None = Field(
        48,
        ge=2,
        le=MAX_TOKENS,
        description="`repetitive`: a block of up to 64 tokens follows itself at least three times, over at least this "
        "many tokens; null: never.",
    )
    allowed_special: list[Annotated[str, Field(min_length=1, max_length=256)]] | None = Field(
        [],
        max_length=4096,
        description="`special`: the reply holds a special token before its end, other than these, such as "
        "`<|channel|>`; null: never. Tokens of the vocabulary's own that are not special (`<think>`) may always be "
        "there.",
    )
    refusals: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field(
        REFUSALS,
        max_length=4096,
        description="`refused`: the reply (after `</think>`) begins with one of these, in any case; `[]`: never.",
    )


def holding(*names: str) -> AfterValidator:
    """A check that a text holds ``{name}`` for each name."""

    def check(text: str) -> str:
        for name in names:
            if f"{{{name}}}" not in text:
                raise ValueError(f"must hold {{{name}}}")
        return text

    return AfterValidator(check)


Instruction = Annotated[str, Field(min_length=1, max_length=4096)]
MAX_QUESTIONS = 16
INSTRUCTION_TOKENS = 512  # room for what a stage asks for, beside what was written before


class ReasoningConfig(Strict):
    """Replies in parts that are asked for one after the other (arXiv 2309.11495).

    A draft; questions that would show whether it is right; an answer to each, from a prompt without the draft; the
    final reply. Sampling is that of the layer in all stages.
    """

    format: Literal["chain_of_verification"]
    layers: list[str] = Field(["reasoning"], min_length=1, description="Layers whose replies are made so.")
    questions: int = Field(4, ge=1, le=MAX_QUESTIONS, description="At most so many are taken.")
    part_tokens: int = Field(
        256,
        ge=1,
        le=MAX_TOKENS,
        description="Longest list of questions and longest answer to one, in tokens; for draft and final reply, "
        "`sampling.max_new_tokens` is.",
    )
    ask_questions: Annotated[Instruction, holding("questions")] = Field(
        "Write up to {questions} short questions whose answers would show whether the reply above is right, one for "
        "each fact or calculation that it rests on. Whoever answers a question does not see the reply, so name what "
        "it is about. Write a numbered list of questions and nothing else.",
        description="Follows the draft; `{questions}` is their number.",
    )
    ask_answer: Annotated[Instruction, holding("question")] = Field(
        "Do not do what is asked above. Answer only this question about it, briefly, with the calculation if there is "
        "one:\n\n{question}",
        description="Follows the prompt, without the draft; `{question}` is one of the questions.",
    )
    ask_final: Annotated[Instruction, holding("answers")] = Field(
        "These questions were answered by somebody who did not see the reply above:\n\n{answers}\n\nNow write the "
        "final reply to what was asked first. Correct whatever the answers show to be wrong, do not mention the "
        "questions, and end with the result.",
        description="Follows the draft; `{answers}` are the questions, each with its answer.",
    )


class GenerationOutput(Strict):
    """Where the replies are written."""

    path: str = Field(min_length=1, description="Folder or object-store prefix (any fsspec URL) of the replies.")
    replies_per_shard: int = Field(
        4096,
        ge=1,
        le=MAX_SHARD_REPLIES,
        description="Replies of a unit (= shard), at least those to one prompt. Units share no forward pass, so the "
        "last replies of each run alone; a killed run loses one.",
    )


class GenerateConfig(Strict):
    """The configuration file of ``teacher-cache generate``."""

    generator: TeacherConfig = Field(description="The model that replies: the teacher, or a student's checkpoint.")
    engine: GenerationEngine = GenerationEngine()
    prompts: PromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    layers: dict[str, SamplingOverride] = Field({}, description="By layer of the data mix, what differs there.")
    seed: int = Field(0, ge=0, le=MAX_COUNT, description="Another seed gives other replies to the same prompts.")
    reject: RejectConfig = RejectConfig()
    reasoning: ReasoningConfig | None = Field(None, description="Replies as chains of verification; null: as they are.")
    output: GenerationOutput

    @model_validator(mode="after")
    def _layers_exist(self) -> "GenerateConfig":
        known = {source.layer for source in self.prompts.sources}
        named = {f"layers.{layer}": layer for layer in self.layers}
        if self.reasoning is not None:
            named |= {f"reasoning.layers: {layer}": layer for layer in self.reasoning.layers}
        if unknown := sorted(place for place, layer in named.items() if layer not in known):
            raise ValueError(f"{unknown[0]}: no source has this layer; there are {', '.join(sorted(known))}")
        return self

    @model_validator(mode="after")
    def _reasoning_is_asked_for_in_chats(self) -> "GenerateConfig":
        if self.reasoning is not None and self.prompts.text == "continue":
            raise ValueError("reasoning: its stages are asked for in a chat, so prompts.text must be `ask`")
        return self

    def sampling_of(self, layer: str) -> SamplingConfig:
        """The settings for prompts of a layer."""
        override = self.layers.get(layer)
        if override is None:
            return self.sampling
        return self.sampling.model_copy(update=override.model_dump(exclude_none=True))

    @property
    def most_after_prompt(self) -> int:
        """Tokens that may follow a prompt in a sequence that the generator reads and writes."""
        return max(
            _after_prompt(self.sampling_of(source.layer), reasoning_of(self.reasoning, source.layer))
            for source in self.prompts.sources
        )


def reasoning_of(reasoning: ReasoningConfig | None, layer: str) -> ReasoningConfig | None:
    """The settings if replies of this layer are made in stages."""
    return reasoning if reasoning is not None and layer in reasoning.layers else None


def _after_prompt(sampling: SamplingConfig, reasoning: ReasoningConfig | None) -> int:
    """The longest sequence is that of the last stage: draft, questions and answers, then the final reply."""
    if reasoning is None:
        return sampling.max_new_tokens
    return longest_reply(sampling, reasoning) + INSTRUCTION_TOKENS


def longest_reply(sampling: SamplingConfig, reasoning: ReasoningConfig | None) -> int:
    """Tokens of the longest reply; of a chain without what its tags take."""
    if reasoning is None:
        return sampling.max_new_tokens
    return 2 * sampling.max_new_tokens + (1 + reasoning.questions) * reasoning.part_tokens
