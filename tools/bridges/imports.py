"""``cache-tools import``: a new cache from another system's files.

One shard's samples are in memory at a time. The manifest is written last: until then there is no cache at the target.
A failed import removes what it wrote; after a killed one, the next import does.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from schemas.errors import UserError
from schemas.manifest import Manifest, Unit
from teacher_cache.records import Captured, LogitsSample, TokenSample
from teacher_cache.shards.marks import assemble, write_manifest
from teacher_cache.shards.new_place import check_free, new_cache
from teacher_cache.shards.shard_table import shard_name
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.writer import write_tokens
from teacher_cache.token_batch import TokenBatch
from teacher_cache.writing import UnitWriter
from tools.bridges.captured import DistillKitSource
from tools.bridges.captured_source import CapturedOptions
from tools.bridges.import_sources import Found, ParquetSource, Source
from tools.bridges.logprobs_source import LogprobsSource
from tools.bridges.parquet_files import files_below
from tools.checking.verify import check_sample

IMPORTING = "cache-tools import"  # the owner named in the target's lease
MAX_SHARD_ENTRIES = 1 << 25  # stored entries, in memory
_KEY = re.compile(r"[0-9a-z]{1,64}")
Pair = tuple[TokenSample, LogitsSample]


@dataclass(frozen=True)
class Imported:
    """What was imported."""

    cache: str
    manifest_digest: str
    shards: int
    samples: int
    tokens: int
    rows: int  # of logits
    notes: str


def import_files(
    path: str,
    url: str,
    layout: str,
    options: CapturedOptions,
    tokens_per_shard: int,
    advance: Callable[[int, int], None],
) -> Imported:
    """Import the files at ``path`` into a new cache at ``url``; progress as ``advance(rows of files done, in all)``.

    ``url`` must be empty, leftovers of a killed import aside. Raises UserError, naming file and row, at an impossible
    value; nothing is then left at ``url``.
    """
    files = files_below(path, "jsonl" if layout == "logprobs" else "parquet")
    settings = path, layout, options, tokens_per_shard
    check_free(url, IMPORTING, *settings)
    source: Source
    if layout == "parquet":
        source = ParquetSource(files, tokens_per_shard)
    elif layout == "distillkit":
        source = DistillKitSource(files, options, tokens_per_shard)
    else:
        source = LogprobsSource(files, options, tokens_per_shard)
    plan = source.plan()
    with new_cache(url, IMPORTING, *settings) as storage:
        units, longest, rows, minor = _write_shards(storage, plan, source, advance)
        if not units:
            raise UserError(f"{path}: no file holds a sample with a row in the loss mask")
        manifest = assemble(storage, plan.model_copy(update={"units": units, "format_minor": minor}))
        manifest = write_manifest(storage, source.finished(manifest, longest))
    assert manifest.derived is not None
    totals = manifest.totals
    return Imported(url, manifest.digest(), len(units), totals.samples, totals.tokens, rows, manifest.derived.notes)


def _write_shards(
    storage: Storage, plan: Manifest, source: Source, advance: Callable[[int, int], None]
) -> tuple[list[Unit], int, int, int]:
    """Write and commit all shards; returns units, tokens of the longest sequence, rows, and format minor version."""
    units: list[Unit] = []
    longest = rows = minor = 0
    with UnitWriter(storage, plan, "", lambda *_: None) as writer:
        for pairs in _shards(plan, source, advance):
            name = shard_name(len(units))
            lengths = [len(tokens.input_ids) for tokens, _ in pairs]
            index = write_tokens(storage, name, TokenBatch.of([tokens for tokens, _ in pairs]))
            minor = max(minor, index.format_minor)
            units.append(Unit(name=name, samples=len(pairs), tokens=sum(lengths), tokens_file=index.file))
            writer.begin(units[-1], index)
            writer.add([tokens for tokens, _ in pairs], [Captured(logits) for _, logits in pairs])
            writer.commit()
            longest = max(longest, *lengths)
            rows += sum(len(logits.positions) for _, logits in pairs)
    return units, longest, rows, minor


def _shards(plan: Manifest, source: Source, advance: Callable[[int, int], None]) -> Iterator[list[Pair]]:
    """The checked samples, one list per shard."""
    seen: set[str] = set()
    pairs: list[Pair] = []
    n_tokens = n_entries = 0
    for found in source.samples():
        pair = checked(found, plan)
        key = pair[0].key
        if key in seen:
            raise UserError(f"{found.where}: key {key} occurs twice; every sample needs a unique key")
        seen.add(key)
        pairs.append(pair)
        n_tokens += len(pair[0].input_ids)
        n_entries += pair[1].ids.size
        advance(found.rows_done, source.n_rows)
        if n_tokens >= plan.tokens_per_shard or n_entries >= MAX_SHARD_ENTRIES:
            yield pairs
            pairs, n_tokens, n_entries = [], 0, 0
    if pairs:
        yield pairs


def checked(found: Found, plan: Manifest) -> Pair:
    """Check a sample and cast it to the records' dtypes. Raises UserError, naming file and row, for invalid values."""
    tokens, logits, vocabulary = found.tokens, found.logits, plan.teacher.vocab_size
    n, positions = len(tokens.input_ids), logits.positions
    stored_PK = np.arange(logits.ids.shape[1]) < logits.counts[:, None]
    follows_P = positions < n - 1
    sound = {
        f"{n} tokens, wanted 1 to {plan.corpus.settings.max_tokens}": 1 <= n <= plan.corpus.settings.max_tokens,
        f"key {tokens.key[:80]!r}: wanted 1 to 64 digits or lower-case letters": bool(_KEY.fullmatch(tokens.key)),
        f"input_ids: wanted 0 to {vocabulary - 1}": _within(tokens.input_ids, vocabulary),
        "the last token is in the loss mask, but no token follows it": n == 0 or not tokens.loss_mask[-1],
        f"positions: wanted increasing ones below {n}": _within(positions, n) and bool((np.diff(positions) > 0).all()),
        f"ids: wanted 0 to {vocabulary - 1}": _within(logits.ids[stored_PK], vocabulary),
        "a log-probability is not a finite number": bool(np.isfinite(logits.logprobs[stored_PK]).all()),
        "a log-partition is not a finite number": bool(np.isfinite(logits.log_partition).all()),
        "next_logprob is not a number": not np.isnan(logits.next_logprob[follows_P]).any(),
    }
    for problem, holds in sound.items():
        if not holds:
            raise UserError(f"{found.where}: {problem}")
    tokens = TokenSample(**vars(tokens) | {"input_ids": tokens.input_ids.astype(np.uint32)})
    logits = LogitsSample(
        **vars(logits) | {"positions": positions.astype(np.int32), "ids": logits.ids.astype(np.int32)}
    )
    for problem in check_sample(tokens, logits, plan):
        raise UserError(f"{found.where}, {problem.replace('row', 'token', 1)}")
    return tokens, LogitsSample(**vars(logits) | {"logprobs": np.minimum(logits.logprobs, 0)})


def _within(numbers: np.ndarray, stop: int) -> bool:
    return not len(numbers) or (int(numbers.min()) >= 0 and int(numbers.max()) < stop)
