"""Plan a generation: prompts are read, rendered and tokenized once, and split into units of work.

The plan depends only on prompts and configuration. It writes one file of prompts per unit and a manifest without
shards. Any worker can (re)do any unit from these; a unit without a commit mark is done again as a whole.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from schemas.difference import said_differences
from schemas.errors import UserError
from schemas.generate_config import GenerateConfig, longest_reply, reasoning_of
from schemas.generated_manifest import GeneratedManifest, PromptCounts, PromptUnit
from teacher_cache.corpus import corpus_fingerprint
from teacher_cache.corpus.fingerprint import with_file_names
from teacher_cache.generated.generated_place import (
    GENERATED,
    prompts_name,
    read_generated,
    write_generated,
)
from teacher_cache.generated.reply_files import Prompt, write_rows
from teacher_cache.generation.prompt_reader import PromptReader
from teacher_cache.generation.reject import forbidden_ids
from teacher_cache.lengths import max_length
from teacher_cache.plan import PLANNING, wait_for_workers
from teacher_cache.shards import lease
from teacher_cache.shards.marks import own_names
from teacher_cache.shards.new_place import UNDER_WAY, clear, planned_or_cleared, sign_of
from teacher_cache.shards.shard_table import shard_name
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.teacher import describe_teacher, load_model_config, load_stop_tokens
from teacher_cache.teacher_vocabulary import end_of_turn
from teacher_cache.tokenizer import describe_tokenization

logger = logging.getLogger(__name__)
MOST_NEW_TOKENS = 1 << 26  # of a unit, if every reply is as long as it may be: 600 MB of ids and text
MOST_PROMPT_BYTES = 1 << 26
NOT_SETTINGS = {"units", "shards", "complete", "counts", "sha256", "generated_version"}


def load_or_make_generation(config: GenerateConfig, storage: Storage, tokenizer: Any) -> GeneratedManifest:
    """Return the manifest of the replies at ``storage``, planning them first if there is none.

    Of several processes that start at once, one plans and the others wait. Raises UserError if the place was planned
    with another configuration (naming the differing keys), or for bad prompts.
    """
    wanted = empty_generation(config, tokenizer)
    if not storage.exists(GENERATED):
        with lease.only_place(storage, PLANNING, wait_for_workers) as owned:
            if not storage.exists(GENERATED):  # another process may have planned meanwhile
                return _make_plan(config, wanted, tokenizer, owned.storage)
    present = read_generated(storage)
    _check_same(present, wanted, storage)
    return present


def empty_generation(config: GenerateConfig, tokenizer: Any) -> GeneratedManifest:
    """The manifest before planning: no units. Raises UserError if the generator cannot do what is asked."""
    layers = sorted({source.layer for source in config.prompts.sources})
    sampling = {layer: config.sampling_of(layer) for layer in layers}
    _check_length(config)
    for layer, each in sampling.items():
        if each.samples > config.output.replies_per_shard:
            raise UserError(
                f"output.replies_per_shard: {config.output.replies_per_shard} is less than the {each.samples} samples "
                f"of one prompt (layer {layer}); set it to {each.samples} or more"
            )
    forbidden_ids(tokenizer, config.reject)  # raises if others than special tokens are allowed
    own = _own_stop_ids(config, tokenizer)
    if not own and not any(each.stop for each in sampling.values()):
        raise UserError(
            "sampling.stop: neither the model nor its chat template names a token that ends a reply; set one"
        )
    return GeneratedManifest(
        generator=describe_teacher(config.generator, "generator.path"),
        engine=config.engine.kind,
        tokenizer=describe_tokenization(tokenizer, config.prompts.as_corpus(), "prompts"),
        prompts=with_file_names(config.prompts),
        prompts_fingerprint=corpus_fingerprint(config.prompts.as_corpus(), "prompts"),
        counts=PromptCounts(),
        sampling=sampling,
        stop_tokens={layer: sorted({*own, *_stop_ids(each.stop, tokenizer)}) for layer, each in sampling.items()},
        seed=config.seed,
        reject=config.reject,
        reasoning=config.reasoning,
        replies_per_shard=config.output.replies_per_shard,
        units=[],
        complete=False,
        shards=[],
    )


def _check_length(config: GenerateConfig) -> None:
    new_tokens = config.most_after_prompt
    limit = max_length(load_model_config(config.generator, "generator.path").get_text_config())
    if limit is not None and config.prompts.max_tokens + new_tokens > limit:
        of = "sampling.max_new_tokens" if config.reasoning is None else "reasoning: draft, questions, answers and reply"
        raise UserError(
            f"{of}: {new_tokens} and prompts.max_tokens {config.prompts.max_tokens} exceed the {limit} tokens that the "
            "generator supports; lower one of them"
        )


def _own_stop_ids(config: GenerateConfig, tokenizer: Any) -> set[int]:
    """The tokens that end a reply of this model: of its settings, its tokenizer and its chat template."""
    found = {*load_stop_tokens(config.generator), *end_of_turn(tokenizer, config.prompts.as_corpus())}
    return found if tokenizer.eos_token_id is None else {*found, tokenizer.eos_token_id}


def _stop_ids(stop: Sequence[str], tokenizer: Any) -> Iterator[int]:
    vocabulary = tokenizer.get_vocab() if stop else {}
    for text in stop:
        ids = [vocabulary[text]] if text in vocabulary else tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise UserError(
                f"sampling.stop: {text!r} is {len(ids)} tokens of this tokenizer, wanted one token; give a token, such "
                "as the end of a turn"
            )
        yield ids[0]


def _check_same(present: GeneratedManifest, wanted: GeneratedManifest, storage: Storage) -> None:
    """Raise UserError naming each setting in which ``wanted`` differs from what is there."""
    before, now = (each.model_dump(exclude=NOT_SETTINGS) for each in (present, wanted))
    if differing := said_differences(before, now):
        raise UserError(
            f"{storage.where(GENERATED)}: these replies were made with other settings: {differing}; choose "
            "another output.path, or use the same settings"
        )


def _make_plan(
    config: GenerateConfig, wanted: GeneratedManifest, tokenizer: Any, storage: Storage
) -> GeneratedManifest:
    lease.end_dead_parts(storage, PLANNING)
    _make_room(storage)
    reader = PromptReader(config.prompts, tokenizer)
    with planned_or_cleared(storage):
        units = [
            _write_unit(storage, number, prompts, wanted) for number, prompts in enumerate(in_units(reader, wanted))
        ]
        plan = write_generated(storage, wanted.model_copy(update={"units": units, "counts": reader.counts}))
    logger.info("planned %d units, %d prompts", len(units), reader.counts.prompts)
    return plan


def _make_room(storage: Storage) -> None:
    """Remove leftovers of a killed plan, and write a sign for the next one. Raises UserError if files are there."""
    names = storage.names()
    if UNDER_WAY in names:
        clear(storage)
    elif in_the_way := [*({MANIFEST} & {*names}), *own_names(names)]:
        raise UserError(
            f"{storage.where(in_the_way[0])}: exists without {GENERATED}, and generated replies might overwrite it; "
            "choose another output.path"
        )
    storage.write(UNDER_WAY, sign_of(PLANNING))


def in_units(prompts: Iterable[Prompt], plan: GeneratedManifest) -> Iterator[list[Prompt]]:
    """Consecutive prompts with at most ``replies_per_shard`` replies, and files of a bounded size."""
    most = np.array([plan.replies_per_shard, MOST_NEW_TOKENS, MOST_PROMPT_BYTES])
    unit: list[Prompt] = []
    has = np.zeros(3, np.int64)
    for prompt in prompts:
        sampling = plan.sampling[prompt.layer]
        size = 4 * len(prompt.prompt_ids) + len(prompt.prompt.encode()) + len(prompt.chat)
        longest = longest_reply(sampling, reasoning_of(plan.reasoning, prompt.layer))
        more = np.array([sampling.samples, sampling.samples * longest, size])
        if unit and (has + more > most).any():
            yield unit
            unit, has = [], np.zeros(3, np.int64)
        unit.append(prompt)
        has = has + more
    if unit:
        yield unit


def _write_unit(storage: Storage, number: int, prompts: list[Prompt], plan: GeneratedManifest) -> PromptUnit:
    name = shard_name(number)
    file = write_rows(storage, prompts_name(name), prompts)
    replies = sum(plan.sampling[prompt.layer].samples for prompt in prompts)
    return PromptUnit(name=name, prompts=len(prompts), replies=replies, file=file)
