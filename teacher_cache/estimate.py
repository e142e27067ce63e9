"""What a cache will take, before it is made: tokens and shards from the corpus; bytes and hours from a probe.

A probe scores a few sequences with the configured teacher and encodes them as a run would. Nothing is written.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemas.cache_config import CacheConfig
from schemas.manifest import CorpusCounts, Manifest, Signal
from teacher_cache.codec.encoders import Encoders, make_code_table
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.codec.tokens import encode_tokens
from teacher_cache.corpus import Corpus
from teacher_cache.engines import open_engine
from teacher_cache.options import options
from teacher_cache.plan import empty_plan, numbered_parts
from teacher_cache.records import Captured, TokenSample
from teacher_cache.shards.tar import member_bytes
from teacher_cache.signals.positions import to_request
from teacher_cache.teacher import load_tokenizer
from teacher_cache.vocabulary import within_vocabulary


@dataclass(frozen=True)
class Survey:
    """A corpus as it would be planned."""

    plan: Manifest  # without units
    counts: CorpusCounts
    units: int
    samples: list[TokenSample]  # some, spread over the corpus


@dataclass(frozen=True)
class Estimate:
    """What a run of the whole corpus would take, from the sequences that were probed."""

    sequences: int
    tokens: int
    tokens_per_second: float
    hours: float
    bytes_per_token: dict[str, float]
    gigabytes: dict[str, float]
    other_settings: dict[str, float]  # bytes a token of the signal that the setting is about


def survey(config: CacheConfig, n_samples: int) -> Survey:
    """Check the configuration, read the corpus once, and keep every so many-th sequence. Raises UserError."""
    tokenizer = load_tokenizer(config.teacher)
    plan = empty_plan(config, tokenizer)
    corpus = Corpus(config.corpus, tokenizer)
    kept: list[TokenSample] = []
    units, every = 0, 1
    samples = within_vocabulary(corpus, plan, tokenizer, config.teacher.path)
    for number, (unit, sample) in enumerate(numbered_parts(samples, config.output.tokens_per_shard)):
        units = unit + 1
        if number % every == 0:
            kept.append(sample)
        if len(kept) > 2 * n_samples:
            kept, every = kept[::2], 2 * every
    spread = kept[:: max(1, len(kept) // n_samples)][:n_samples]
    return Survey(plan, corpus.counts, units, spread)


def probe(config: CacheConfig, survey: Survey) -> Estimate:
    """Score and encode the survey's samples; one is scored before, to warm up. Raises UserError."""
    plan, samples, total_tokens = survey.plan, survey.samples, survey.counts.tokens
    requests = [to_request(sample, config.capture) for sample in samples]
    with open_engine(config) as engine:
        engine.score(requests[:1])
        started = time.perf_counter()
        captured = engine.score(requests)
        seconds = time.perf_counter() - started
    tokens = sum(len(sample.input_ids) for sample in samples)
    table = CodeTable(make_code_table(captured, plan.teacher.vocab_size))
    text_bytes = sum(member_bytes(len(encode_tokens(sample))) for sample in samples)
    per_token = {"tokens": text_bytes / tokens} | _bytes_per_token(plan, captured, table, tokens)
    per_second = tokens / seconds
    return Estimate(
        sequences=len(samples),
        tokens=tokens,
        tokens_per_second=per_second,
        hours=total_tokens / per_second / 3600,
        bytes_per_token=per_token,
        gigabytes={signal: size * total_tokens / 1e9 for signal, size in per_token.items()},
        other_settings=dict(_other_settings(plan, captured, table, tokens)),
    )


def _bytes_per_token(
    plan: Manifest, captured: Sequence[Captured], table: CodeTable, tokens: int
) -> dict[Signal, float]:
    """Of every captured signal, in its tar."""
    encoders = Encoders(plan)
    encoders.use_table(table)
    sizes: dict[Signal, int] = {}
    for signals in captured:
        for encode in (encoders.encode_ids, encoders.encode_others):
            for signal, payload in encode(signals):
                sizes[signal] = sizes.get(signal, 0) + member_bytes(len(payload))
    return {signal: size / tokens for signal, size in sizes.items()}


def _other_settings(
    plan: Manifest, captured: Sequence[Captured], table: CodeTable, tokens: int
) -> Iterator[tuple[str, float]]:
    for option in options(plan.capture, plan.codec, captured, plan.teacher.hidden_size):
        changed = plan.model_copy(update={"capture": option.capture, "codec": option.codec})
        yield option.setting, _bytes_per_token(changed, option.captured, table, tokens)[option.signal]
