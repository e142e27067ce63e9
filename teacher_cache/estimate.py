"""Estimate the cost of a cache before making it: tokens and shards from the corpus, bytes and hours from a probe.

A probe scores a few sequences with the configured teacher and encodes them as a run would. Nothing is written.

A sequence's size is linear in its stored rows: all its tokens, or those in the loss mask. The line is fitted to the
probed sequences and evaluated at the whole corpus' row count, which is known exactly. A plain mean was off by 20 %,
because a few sequences rarely have the corpus' share of rows in the loss mask.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.cache_config import CacheConfig
from schemas.manifest import CorpusCounts, Manifest, Signal
from teacher_cache.codec.bundles import MOST_SAMPLES, are_short, as_record, bundle_bytes
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.codec.tokens import encode_tokens
from teacher_cache.corpus import Corpus
from teacher_cache.engines import open_engine
from teacher_cache.options import options
from teacher_cache.plan import empty_plan
from teacher_cache.progress import reading
from teacher_cache.records import Captured, TokenSample
from teacher_cache.shards.tar import BLOCK, member_bytes
from teacher_cache.signals.encoders import Encoders, make_code_table
from teacher_cache.signals.select_positions import to_request
from teacher_cache.teacher import load_tokenizer
from teacher_cache.token_batch import in_parts
from teacher_cache.vocabulary import within_vocabulary

TEXTS = 256
TAR_END = 2 * BLOCK  # bytes at the end of each tar
LEAST_FITTED = 3  # distinct row counts needed to fit a line; below that, a mean


@dataclass(frozen=True)
class Survey:
    """The plan of a corpus, and the samples that a probe scores."""

    plan: Manifest  # without units
    counts: CorpusCounts
    units: int
    samples: list[TokenSample]  # to score; evenly spaced over the corpus
    texts: list[TokenSample]  # a larger set, only for the size of the tokens signal
    bundled: bool  # whether samples share tar members


@dataclass(frozen=True)
class Estimate:
    """Cost of a run over the whole corpus, extrapolated from the probed sequences."""

    sequences: int
    tokens: int
    tokens_per_second: float
    hours: float
    bytes_per_token: dict[str, float]  # by signal, per corpus token
    gigabytes: dict[str, float]
    other_settings: dict[str, float]  # by setting: bytes per token of the signal that it affects


def survey(config: CacheConfig, n_samples: int) -> Survey:
    """Check the configuration, read the corpus once, and keep evenly spaced sequences. Raises UserError."""
    tokenizer = load_tokenizer(config.teacher)
    plan = empty_plan(config, tokenizer)
    corpus = Corpus(config.corpus, tokenizer)
    kept: list[TokenSample] = []
    units, number, every = 0, 0, 1
    batches = within_vocabulary(reading(corpus.batches()), plan, tokenizer, config.teacher.path)
    for part in in_parts(batches, config.output.tokens_per_shard):
        units += 1
        for sample in part.samples():
            if number % every == 0:
                kept.append(sample)
            if len(kept) > 2 * max(n_samples, TEXTS):
                kept, every = kept[::2], 2 * every
            number += 1
    spread = kept[:: max(1, len(kept) // n_samples)][:n_samples]
    short = config.output.bundle_short_samples and are_short([len(sample.input_ids) for sample in kept])
    return Survey(plan, corpus.counts, units, spread, kept, short)


def probe(config: CacheConfig, survey: Survey) -> Estimate:
    """Score and encode the survey's samples, after one warm-up request. Raises UserError."""
    plan, samples, total_tokens = survey.plan, survey.samples, survey.counts.tokens
    requests = [to_request(sample, config.capture) for sample in samples]
    with open_engine(config) as engine:
        engine.score(requests[:1])
        started = time.perf_counter()
        captured = engine.score(requests)
        seconds = time.perf_counter() - started
    tokens = sum(len(sample.input_ids) for sample in samples)
    table = CodeTable(make_code_table(captured, plan.teacher.vocab_size))
    per_token = _bytes_per_token(plan, survey, captured, table)
    per_second = tokens / seconds
    return Estimate(
        sequences=len(samples),
        tokens=tokens,
        tokens_per_second=per_second,
        hours=total_tokens / per_second / 3600,
        bytes_per_token=per_token,
        gigabytes={signal: size * total_tokens / 1e9 for signal, size in per_token.items()},
        other_settings=dict(_other_settings(plan, survey, captured, table)),
    )


def _bytes_per_token(
    plan: Manifest, survey: Survey, captured: Sequence[Captured], table: CodeTable
) -> dict[str, float]:
    """Tar bytes of each signal, per corpus token."""
    encoders = Encoders(plan)
    encoders.use_table(table)
    texts = [_in_tar("tokens", encode_tokens(sample), survey.bundled) for sample in survey.texts]
    sizes: dict[Signal, list[int]] = {"tokens": texts}
    for signals in captured:
        for encode in (encoders.encode_ids, encoders.encode_others):
            for signal, payload in encode(signals):
                sizes.setdefault(signal, []).append(_in_tar(signal, payload, survey.bundled))
    return {signal: _corpus_bytes(own, signal, plan, survey) / survey.counts.tokens for signal, own in sizes.items()}


def _in_tar(signal: Signal, payload: bytes, bundled: bool) -> int:
    """Bytes of a sample in its tar: its member, or its share of a bundle of equal samples."""
    if not bundled:
        return member_bytes(len(payload))
    record = as_record(signal, payload)
    return member_bytes(bundle_bytes([len(record)] * MOST_SAMPLES)) // MOST_SAMPLES


def _corpus_bytes(sizes: list[int], signal: Signal, plan: Manifest, survey: Survey) -> float:
    """Bytes of a signal's tars for the whole corpus, from the ``sizes`` of the probed sequences."""
    positions = "all" if signal == "tokens" else plan.capture.positions(signal)
    samples = survey.texts if signal == "tokens" else survey.samples
    if positions in ("loss_mask", "keywords"):
        rows, all_rows = [int(sample.loss_mask.sum()) for sample in samples], survey.counts.loss_tokens
    else:
        rows, all_rows = [len(sample.input_ids) for sample in samples], survey.counts.tokens
    ends = survey.units * TAR_END
    if len(set(rows)) >= LEAST_FITTED:
        slope, start = np.polyfit(rows, sizes, 1)
        whole = slope * all_rows + start * survey.counts.samples
        if slope >= 0 and whole >= 0:
            return float(whole + ends)
    return sum(sizes) / max(1, sum(rows)) * all_rows + ends


def _other_settings(
    plan: Manifest, survey: Survey, captured: Sequence[Captured], table: CodeTable
) -> Iterator[tuple[str, float]]:
    for option in options(plan.capture, plan.codec, captured, plan.teacher.hidden_size):
        changed = plan.model_copy(update={"capture": option.capture, "codec": option.codec})
        yield option.setting, _bytes_per_token(changed, survey, option.captured, table)[option.signal]
