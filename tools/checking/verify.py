"""``cache-tools verify``: list all problems of a cache, not only the first.

Quick: manifest, commit marks, indexes, tables and file sizes. Full: also the sha256 of every file, the checksum of
every sample, whether tars hold exactly what the indexes list, and whether every row is a valid distribution. Memory is
bounded by one sample and one block of a file.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry, Manifest
from teacher_cache.codec.permutation import table_path
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.shards.chats import chat_of
from teacher_cache.shards.head_file import read_head
from teacher_cache.shards.marks import (
    check_sizes,
    mark_name,
    read_index,
    read_table,
    tar_name,
    totals_of,
    up_to_date_manifest,
)
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import HEAD, MANIFEST, VOCABULARY, Storage
from teacher_cache.shards.unlisted import file_sizes
from teacher_cache.shards.vocabulary_file import read_vocabulary
from teacher_cache.signals.side_table import SIDE_SIGNALS, needs_head
from tools.checking.misplaced import Doubts, Kinds, problems_of, said_of_rows
from tools.checking.problem import Problem, problems
from tools.checking.tars import check_file, check_tar

if TYPE_CHECKING:
    from teacher_cache.output_head import OutputHead

REBUILT = 2  # samples per shard whose logits are rebuilt with the output head and compared


@dataclass(frozen=True)
class Report:
    """Extent of the check, and the problems found."""

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

    ``checks``: further checks of cache and manifest, such as ``trust_check``; a CorruptCacheError is a problem. Raises
    UserError if there is no cache at ``url`` or its manifest is invalid.
    """
    storage = Storage(url)
    manifest = up_to_date_manifest(storage)
    found = [problem for check in checks for problem in problems(partial(check, storage, manifest), storage)]
    manifest = with_lists(storage, manifest)
    tables = {table_path(digest) for digest in manifest.tables}
    structure = list(_structure(storage, manifest))
    found += structure
    if not quick:
        contents = list(_contents(storage, manifest))
        found += contents
        if tables.isdisjoint(problem.file for problem in structure + contents):  # decoding needs all code tables
            unsound = {problem.shard for problem in structure}
            sound = [entry for entry in manifest.shards if entry.name not in unsound]
            found += _samples(url, manifest.model_copy(update={"shards": sound, "shard_table": None}), advance)
    texts = list(dict.fromkeys(problem.text for problem in found))
    return Report(len(manifest.shards), manifest.totals.samples, manifest.totals.tokens, texts)


def _structure(storage: Storage, manifest: Manifest) -> Iterator[Problem]:
    """Check marks, indexes, sizes, planned sequences and code tables; find tars that belong to no shard."""
    sizes = file_sizes(storage)
    for shard, name, file in _planned(manifest):
        if name not in sizes:
            text = f"{name}: the file is missing, with sequences that are still to be scored"
            yield Problem(shard, name, text)
        elif sizes[name] != file.bytes:
            yield Problem(shard, name, f"{name}: {sizes[name]} bytes, the plan says {file.bytes}")
    for entry in manifest.shards:
        yield from problems(partial(read_index, storage, manifest, entry), storage, entry.name, mark_name(entry.name))
        for signal in entry.files:
            check = partial(check_sizes, storage, entry, (signal,), sizes)
            yield from problems(check, storage, entry.name, tar_name(entry.name, signal))
    for digest in manifest.tables:
        read = partial(read_table, storage, digest, manifest.teacher.vocab_size)
        yield from problems(read, storage, file=table_path(digest))
    if needs_head(manifest.capture):
        yield from problems(partial(read_head, storage, manifest), storage, file=HEAD)
    if manifest.vocabulary is not None:
        yield from problems(partial(read_vocabulary, storage, manifest), storage, file=VOCABULARY)
    if manifest.totals != totals_of(manifest.shards):
        yield Problem("", MANIFEST, f"{MANIFEST}: its totals are not the sums over its shards")
    if manifest.complete:
        tars = {tar_name(entry.name, signal) for entry in manifest.shards for signal in entry.files}
        for name in sizes:
            if re.fullmatch(r"[^/]*\.tar", name) and name not in tars:
                yield Problem("", name, f"{name}: not in the manifest, and readers of plain tars may read it")


def _planned(manifest: Manifest) -> Iterator[tuple[str, str, FileEntry]]:
    """Planned units that are not committed: unit, name and entry of the file with its sequences."""
    committed = {entry.name for entry in manifest.shards}
    for unit in manifest.units:
        if unit.name not in committed:
            yield unit.name, tar_name(unit.name, "tokens"), unit.tokens_file


def _contents(storage: Storage, manifest: Manifest) -> Iterator[Problem]:
    """Check sha256 and headers of every tar, and the sha256 of every table (marks are checked when read)."""
    for entry in manifest.shards:
        try:
            index = read_index(storage, manifest, entry)
        except CorruptCacheError:
            index = None  # already reported; the files are checked nevertheless
        for signal, file in entry.files.items():
            name = tar_name(entry.name, signal)
            if index is None:
                yield from problems(partial(check_file, storage, name, file), storage, entry.name, name)
            else:
                check = partial(check_tar, storage, name, signal, index.keys, index.signals[signal])
                yield from problems(check, storage, entry.name, name)
    tables = (("", table_path(digest), file) for digest, file in manifest.tables.items())
    for shard, name, file in [*_planned(manifest), *tables]:
        yield from problems(partial(check_file, storage, name, file), storage, shard, name)


def _samples(url: str, manifest: Manifest, advance: Callable[[int, int], None]) -> Iterator[Problem]:
    """Check every sample of the shards in ``manifest``: checksum, decoding, and validity of its values."""
    reader = CacheReader(url, ("tokens", *manifest.capture.signals), manifest)
    storage, positions = Storage(url), itertools.count()
    head = None
    if needs_head(manifest.capture):
        with suppress(CorruptCacheError):  # already reported
            head = reader.read_head()
    for entry in manifest.shards:
        kinds = {signal: Kinds(tar_name(entry.name, signal)) for signal in manifest.capture.signals}
        doubts = Doubts(kinds["logits"], manifest)
        for number, position in enumerate(itertools.islice(positions, entry.samples)):
            for signal, error in _sample(reader, position, head if number < REBUILT else None, doubts, kinds):
                yield Problem.of(error, storage, entry.name, tar_name(entry.name, signal))
            advance(position + 1, len(reader))
        for signal in manifest.capture.signals:
            lines = doubts.said() if signal == "logits" else kinds[signal].said()
            yield from (Problem(entry.name, tar_name(entry.name, signal), line) for line in lines)


def _sample(
    reader: CacheReader, position: int, head: "OutputHead | None", doubts: Doubts, kinds: dict[str, Kinds]
) -> Iterator[tuple[str, CorruptCacheError]]:
    """Yield a sample's errors by signal; contradictions with its tokens or logits go to ``doubts`` and ``kinds``.

    ``head``: if given, logits are rebuilt with it and compared.
    """
    tokens = logits = None
    try:
        tokens = reader.read_tokens(position)
        chat_of(tokens, reader.where(position, "tokens"))
    except CorruptCacheError as error:
        yield "tokens", error
    if tokens is not None:
        try:
            logits = reader.read_logits(position)
            doubts.look_at(tokens, logits)
        except CorruptCacheError as error:
            yield "logits", error
            doubts.not_read(tokens)
    for signal in reader.manifest.capture.side_settings:
        try:
            _check_side(reader, position, signal, logits, head, kinds[signal])
        except CorruptCacheError as error:
            yield signal, error


def _check_side(
    reader: CacheReader,
    position: int,
    signal: str,
    logits: LogitsSample | None,
    head: "OutputHead | None",
    contradictions: Kinds,
) -> None:
    """Raise CorruptCacheError if a sample's record of a side signal cannot be decoded or has invalid values."""
    kind, manifest = SIDE_SIGNALS[signal], reader.manifest
    settings, sample = manifest.capture.side_settings[signal], reader.read(position, signal)
    if logits is not None:
        for what, rows in kind.contradictions(sample, logits, settings, manifest):
            contradictions.add(reader.key(position), what, said_of_rows(what, rows))
    problem = kind.problem(sample, settings, manifest)
    if not problem and logits is not None and head is not None and kind.needs_head:
        problem = kind.rebuilt_problem(sample, logits, settings, head)
    if problem:
        raise CorruptCacheError(f"{reader.where(position, signal)}: {problem}")


def check_sample(tokens: TokenSample, logits: LogitsSample, manifest: Manifest) -> Iterator[str]:
    """Problems of a sample's distributions: one line per kind, naming the first row."""
    for what, rows in problems_of(tokens, logits, manifest).items():
        yield said_of_rows(what, rows)
