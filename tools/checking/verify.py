"""``cache-tools verify``: every problem of a cache, not only the first.

Quick: manifest, commit marks, indexes, tables and the sizes of all files. Full: also the sha256 of every file, the
checksum of every sample, whether tars hold what the indexes say and nothing else, and whether every row can be a
distribution. Memory is bounded by one sample and one block of a file.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from schemas.cache_config import CapturedSignal
from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry, Manifest
from teacher_cache.codec.permutation import table_path
from teacher_cache.consistency import draws_contradictions
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.shards.head_file import read_head
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
from teacher_cache.shards.unlisted import file_sizes
from tools.checking.misplaced import Doubts, Kinds, problems_of, said_of_rows
from tools.checking.tars import check_file, check_tar

if TYPE_CHECKING:
    from teacher_cache.output_head import OutputHead

REBUILT = 2  # samples of a shard whose final hidden states are held against their logits
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
    """Marks, indexes and sizes of each shard, planned sequences, the code tables, and tars that belong to no shard."""
    sizes = file_sizes(storage)
    for name, file in _planned(manifest):
        if name not in sizes:
            yield f"{storage.where(name)}: the file is missing, and so the sequences that are still to be scored"
        elif sizes[name] != file.bytes:
            yield f"{storage.where(name)}: {sizes[name]} bytes, the plan says {file.bytes}"
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


def _planned(manifest: Manifest) -> Iterator[tuple[str, FileEntry]]:
    """The sequences of units that are not committed."""
    committed = {entry.name for entry in manifest.shards}
    for unit in manifest.units:
        if unit.name not in committed:
            yield tar_name(unit.name, "tokens"), unit.tokens_file


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
    for name, file in [*_planned(manifest), *((table_path(digest), file) for digest, file in manifest.tables.items())]:
        yield from _problem(partial(check_file, storage, name, file))


def _problem(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except CorruptCacheError as error:
        yield str(error)


def _samples(url: str, manifest: Manifest, advance: Callable[[int, int], None]) -> Iterator[str]:
    """Every sample of the shards that ``manifest`` lists: checksums, decoding, and the sense of its values."""
    reader = CacheReader(url, ("tokens", *manifest.capture.signals), manifest)
    positions = itertools.count()
    head = None
    if manifest.capture.final is not None:
        with suppress(CorruptCacheError):  # which is a problem already
            head = reader.read_head()
    for size in reader.shard_sizes.tolist():
        own = list(itertools.islice(positions, size))
        if not own:
            continue
        kinds = {s: Kinds(reader.where(own[0], s).partition(": sample ")[0]) for s in manifest.capture.signals}
        doubts = Doubts(kinds["logits"], manifest)
        for position in own:
            yield from _sample(reader, position, doubts, kinds)
            advance(position + 1, len(reader))
        if head is not None:
            for position in own[:REBUILT]:
                yield from _problem(partial(check_rebuilt, reader, position, head))
        yield from doubts.said()
        for signal in manifest.capture.signals:
            if signal != "logits":
                yield from kinds[signal].said()


def _sample(reader: CacheReader, position: int, doubts: Doubts, kinds: dict[CapturedSignal, Kinds]) -> Iterator[str]:
    """What is wrong with a sample by itself; what contradicts its tokens or its logits goes to the others."""
    tokens = logits = None
    try:
        tokens = reader.read_tokens(position)
        logits = reader.read_logits(position)
        doubts.look_at(tokens, logits)
    except CorruptCacheError as error:
        yield str(error)
        if tokens is not None:
            doubts.not_read(tokens)
    capture = reader.manifest.capture
    if capture.hidden is not None:
        yield from _problem(partial(check_hidden, reader, position, "hidden"))
    if capture.final is not None:
        yield from _problem(partial(check_hidden, reader, position, "final"))
    if capture.attention is not None:
        yield from _problem(partial(reader.read_attention, position))  # decoding checks all there is to check
    if capture.draws is not None:
        yield from _problem(partial(check_draws, reader, position, logits, kinds["draws"]))


def check_draws(reader: CacheReader, position: int, logits: LogitsSample | None, kinds: Kinds) -> None:
    """Raise CorruptCacheError when a sample's draws cannot be decoded, or an entropy is above log V.

    Note in ``kinds`` what its logits, if there are any, contradict.
    """
    sample = reader.read_draws(position)
    if logits is not None:
        key = reader.where(position, "draws").rpartition(" ")[2]
        common = np.intersect1d(sample.positions, logits.positions, assume_unique=True)
        for what, wrong_P in draws_contradictions(sample, logits, reader.manifest):
            if wrong_P.any():
                kinds.add(key, what, said_of_rows(what, common[wrong_P]))
    most = math.log(reader.manifest.teacher.vocab_size) + 1 / reader.manifest.codec.scalar_steps_per_nat
    if sample.entropy.max(initial=0) > most:
        where = reader.where(position, "draws")
        raise CorruptCacheError(f"{where}: an entropy of {sample.entropy.max():.4g} nats, at most {most:.4g} can be")


def check_rebuilt(reader: CacheReader, position: int, head: "OutputHead") -> None:
    """Raise CorruptCacheError when a sample's final hidden states are not those of its logits."""
    from teacher_cache.shards.rebuilding import final_problem

    capture = reader.manifest.capture.final
    assert capture is not None
    problem = final_problem(reader.read_final(position), reader.read_logits(position), head, capture)
    if problem:
        raise CorruptCacheError(f"{reader.where(position, 'final')}: {problem}: rows stand at wrong tokens")


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
    """What cannot be true of a teacher's distributions, one line a kind of problem, naming the first row."""
    for what, rows in problems_of(tokens, logits, manifest).items():
        yield said_of_rows(what, rows)
