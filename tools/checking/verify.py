"""``cache-tools verify``: every problem of a cache, not only the first.

Quick: manifest, commit marks, indexes, tables and the sizes of all files. Full: also the sha256 of every file, the
checksum of every sample, whether tars hold what the indexes say and nothing else, and whether every row can be a
distribution. Memory is bounded by one sample and one block of a file.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from schemas.cache_config import CodecConfig
from schemas.errors import CorruptCacheError
from schemas.manifest import Manifest
from teacher_cache.codec.permutation import table_path
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.shards.head import read_head
from teacher_cache.shards.marks import (
    check_sizes,
    read_index,
    read_table,
    tar_name,
    totals_of,
    up_to_date_manifest,
)
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.shards.table import listed
from tools.checking.tars import check_file, check_tar

ROUNDING = 1e-4  # nats, of float32 arithmetic before quantisation
NOT_FINITE = {"bfloat16": 0x7F80, "float16": 0x7C00, "float8_e4m3": 0x7F}  # bits that all are set where it is not


@dataclass(frozen=True)
class Report:
    """What was checked and what was found."""

    shards: int
    samples: int
    tokens: int
    problems: list[str]


def verify(
    url: str,
    quick: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
    checks: Iterable[Callable[[Storage, Manifest], object]] = (),
) -> Report:
    """Check a cache; ``advance(samples done, samples in all)`` is called after each sample.

    ``checks``: what else must hold of cache and manifest, such as ``trust_check``; a CorruptCacheError is a problem.
    Raises UserError when there is no cache at ``url`` or its manifest is not valid.
    """
    storage = Storage(url)
    manifest = up_to_date_manifest(storage)
    untrusted = [problem for check in checks for problem in _problem(partial(check, storage, manifest))]
    manifest = listed(storage, manifest)
    problems = list(dict.fromkeys(_structure(storage, manifest)))
    sound = [entry for entry in manifest.shards if not any(entry.name in problem for problem in problems)]
    if not quick:
        problems += _contents(storage, manifest)
        if not any("tables/" in problem for problem in problems):
            problems += _samples(url, manifest.model_copy(update={"shards": sound, "shard_table": None}), advance)
    relative = [problem.replace(storage.where(""), "") for problem in dict.fromkeys(untrusted + problems)]
    return Report(len(manifest.shards), manifest.totals.samples, manifest.totals.tokens, relative)


def _structure(storage: Storage, manifest: Manifest) -> Iterator[str]:
    """Marks, indexes and sizes of each shard, the code tables, and tars that belong to no shard."""
    sizes = storage.sizes()
    for entry in manifest.shards:
        yield from _problem(partial(read_index, storage, manifest, entry))
        for signal in entry.files:
            yield from _problem(partial(check_sizes, storage, entry, (signal,), sizes))
    for digest in manifest.tables:
        yield from _problem(partial(read_table, storage, digest, manifest.teacher.vocab_size))
    if manifest.capture.final is not None:
        yield from _problem(partial(read_head, storage, manifest))
    if manifest.totals != totals_of(manifest.shards):
        yield f"{storage.where(MANIFEST)}: the totals are not the sums over its shards"
    if manifest.complete:
        tars = {tar_name(entry.name, signal) for entry in manifest.shards for signal in entry.files}
        for name in sizes:
            if re.fullmatch(r"[^/]*\.tar", name) and name not in tars:
                yield f"{storage.where(name)}: the manifest does not list it, and readers of plain tars may take it"


def _contents(storage: Storage, manifest: Manifest) -> Iterator[str]:
    """The sha256 and headers of every tar, the sha256 of every table. (Those of the marks are checked when read.)"""
    for entry in manifest.shards:
        try:
            index = read_index(storage, manifest, entry)
        except CorruptCacheError:
            index = None  # reported before; the files are looked at nevertheless
        for signal, file in entry.files.items():
            name = tar_name(entry.name, signal)
            if index is None:
                yield from _problem(partial(check_file, storage, name, file))
            else:
                yield from _problem(partial(check_tar, storage, name, signal, index.keys, index.signals[signal]))
    for digest, file in manifest.tables.items():
        yield from _problem(partial(check_file, storage, table_path(digest), file))


def _problem(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except CorruptCacheError as error:
        yield str(error)


def _samples(url: str, manifest: Manifest, advance: Callable[[int, int], None]) -> Iterator[str]:
    """Every sample of the shards that ``manifest`` lists: checksums, decoding, and the sense of its values."""
    reader = CacheReader(url, ("tokens", *manifest.capture.signals), manifest)
    for position in range(len(reader)):
        try:
            tokens, logits = reader.read_tokens(position), reader.read_logits(position)
            where = reader.where(position, "logits")
            yield from (f"{where}: {problem}" for problem in check_sample(tokens, _filled(logits), manifest))
        except CorruptCacheError as error:
            yield str(error)
        if manifest.capture.hidden is not None:
            yield from _problem(partial(check_hidden, reader, position, "hidden"))
        if manifest.capture.final is not None:
            yield from _problem(partial(check_hidden, reader, position, "final"))
        if manifest.capture.attention is not None:
            yield from _problem(partial(reader.read_attention, position))  # decoding checks all there is to check
        if manifest.capture.draws is not None:
            yield from _problem(partial(check_draws, reader, position))
        advance(position + 1, len(reader))


def _filled(logits: LogitsSample) -> LogitsSample:
    """The same without the columns that no row has an entry in: what follows takes many times their memory."""
    most = int(logits.counts.max(initial=1))
    return replace(logits, ids=logits.ids[:, :most], logprobs=logits.logprobs[:, :most])


def check_draws(reader: CacheReader, position: int) -> None:
    """Raise CorruptCacheError when a sample's draws cannot be decoded, or an entropy is above log V."""
    sample = reader.read_draws(position)
    most = math.log(reader.manifest.teacher.vocab_size) + 1 / reader.manifest.codec.scalar_steps_per_nat
    if sample.entropy.max(initial=0) > most:
        where = reader.where(position, "draws")
        raise CorruptCacheError(f"{where}: an entropy of {sample.entropy.max():.4g} nats, at most {most:.4g} can be")


def check_hidden(reader: CacheReader, position: int, signal: Literal["hidden", "final"]) -> None:
    """Raise CorruptCacheError when a sample's hidden states cannot be decoded or are not finite numbers."""
    sample = reader.read_hidden(position) if signal == "hidden" else reader.read_final(position)
    capture = getattr(reader.manifest.capture, signal)
    for name, bits in (("scales", sample.scales), ("outliers", sample.outliers), ("values", sample.values)):
        dtype = capture.dtype if name == "values" else "bfloat16"
        if dtype not in NOT_FINITE:
            continue  # integers are finite
        mask = NOT_FINITE[dtype]
        if ((bits & mask) == mask).any():
            where = reader.where(position, signal)
            raise CorruptCacheError(f"{where}: the {name} of its hidden states are not all finite")


def check_sample(tokens: TokenSample, logits: LogitsSample, manifest: Manifest) -> Iterator[str]:
    """What cannot be true of a teacher's distributions, one line a kind of problem, naming the first row.

    Every stored log-probability is off by half a step at most, so sums of probabilities may exceed 1 by that factor.
    """
    step = logprob_error(logits, manifest.codec) + ROUNDING
    scalar = 0.5 / manifest.codec.scalar_steps_per_nat + ROUNDING
    rows = partial(_rows, logits.positions)
    stored_PK = np.isfinite(logits.logprobs)
    logprobs_PK = logits.logprobs.astype(np.float64)
    last_P = logprobs_PK[np.arange(len(logprobs_PK)), logits.counts - 1]

    ordered_PK = np.sort(np.where(stored_PK, logits.ids, -1 - np.arange(logits.ids.shape[1])), axis=1)
    yield from rows("a token id stands twice", (np.diff(ordered_PK, axis=1) == 0).any(axis=1))
    with np.errstate(invalid="ignore"):
        rising_PK = (np.diff(logprobs_PK, axis=1) > 0) & stored_PK[:, 1:]
    yield from rows("log-probabilities do not fall", rising_PK.any(axis=1))
    yield from rows("probabilities sum to more than 1", np.exp(logprobs_PK).sum(axis=1) > np.exp(step))

    counting = np.flatnonzero(tokens.loss_mask)
    yield from _rows(counting, "it counts, and is not stored", ~np.isin(counting, logits.positions))

    has_next_P = logits.positions < logits.num_tokens - 1
    realised_P = np.where(has_next_P, logits.next_logprob, -np.inf).astype(np.float64)
    yield from rows("the realised token has a probability above 1", realised_P > scalar)
    next_P = tokens.input_ids[np.minimum(logits.positions + 1, logits.num_tokens - 1)].astype(np.int64)
    found_PK = (logits.ids == next_P[:, None]) & stored_PK & has_next_P[:, None]
    found_P = found_PK.any(axis=1)
    entry_P = np.where(found_PK, logprobs_PK, 0).sum(axis=1)
    differs_P = found_P & (np.abs(realised_P - entry_P) > step + scalar)
    yield from rows("the realised token's log-probability is not that of its entry", differs_P)
    missed_P = ~found_P & (realised_P > last_P + step + scalar)
    yield from rows("the realised token is not stored though it is likelier than stored ones", missed_P)

    outside_P = manifest.teacher.vocab_size - logits.counts
    for column, temperature in enumerate(manifest.capture.logits.temperatures):
        scaled_PK = np.exp(logprobs_PK / temperature - logits.log_partition[:, [column]])
        slack = np.exp(step / temperature + scalar)
        least_P = scaled_PK.sum(axis=1)
        most_P = least_P + outside_P * np.take_along_axis(scaled_PK, logits.counts[:, None] - 1, axis=1)[:, 0]
        wrong_P = (least_P > slack) | (most_P < 1 / slack)
        yield from rows(f"the log-partition at temperature {temperature:g} contradicts the stored entries", wrong_P)


def logprob_error(logits: LogitsSample, codec: CodecConfig) -> float:
    """By how many nats a stored log-probability may be off."""
    if codec.logprobs == "steps":
        return 0.5 / codec.logprob_steps_per_nat
    lowest = float(-logits.logprobs.min(initial=0, where=np.isfinite(logits.logprobs)))
    return lowest * {"bfloat16": 2**-8, "float16": 2**-11, "float32": 0.0}[codec.logprobs]


def _rows(positions_P: np.ndarray, what: str, wrong_P: np.ndarray) -> Iterator[str]:
    wrong = positions_P[wrong_P]
    if len(wrong):
        yield f"row {wrong[0]}: {what}" + (f" ({len(wrong)} rows)" if len(wrong) > 1 else "")
