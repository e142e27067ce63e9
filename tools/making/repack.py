"""``cache-tools repack``: the same samples in shards of another size, with fewer entries a row, or coarser values.

If only the shard size changes, payloads are copied unchanged, and a shard ends where the code table changes. Otherwise
logits and draws are re-encoded with a single code table, and other signals copied; with fewer entries, draws from the
tail become draws from the larger tail (``tail_draws``). Memory holds one sample at a time,
and the indexes of the shards that are joined into a new one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from schemas.cache_config import CaptureConfig, CodecConfig
from schemas.derivation import Derivation
from schemas.difference import differences
from schemas.errors import UserError
from schemas.load import validate
from schemas.manifest import MAX_SHARD_SAMPLES, FileEntry, Manifest, ShardEntry, ShardIndex
from teacher_cache.codec.permutation import encode_table, table_digest, table_path
from teacher_cache.shards.marks import files_beside_shards, write_manifest
from teacher_cache.shards.new_place import new_cache
from teacher_cache.shards.shard_table import shard_name, signals_of
from tools.making.derived import ShardSlice, derived_manifest, join_parts, source_of, unchanged
from tools.making.link import share_file
from tools.making.recode import Recoder, check_not_finer
from tools.making.source import open_complete, read_index


@dataclass(frozen=True)
class Changes:
    """Requested changes; None: keep the current setting."""

    tokens_per_shard: int | None = None
    k: int | None = None
    logprobs: str | None = None
    steps_per_nat: int | None = None
    zstd_level: int | None = None
    recode: bool = False  # re-encode logits and draws, with a single code table, even if their settings do not change


@dataclass(frozen=True)
class Repacked:
    """The outcome of a repack."""

    shards_before: int
    shards: int
    samples: int
    tokens: int
    bytes_before: int  # of all signals
    bytes: int
    coded_anew: bool
    changes: str


def repack(
    source: str, target: str, changes: Changes, advance: Callable[[int, int], None] = lambda done, total: None
) -> Repacked:
    """Write the samples of the complete cache ``source`` to ``target``; ``advance(samples done, samples in all)``.

    Raises UserError when nothing would change or the cache stores less than is asked for, CorruptCacheError when one of
    its files is wrong; nothing is then left at ``target``.
    """
    if changes == Changes():
        raise UserError("nothing to change: give --tokens-per-shard, --k, --logprobs, --steps-per-nat or --zstd-level")
    cache = open_complete(source)
    base = cache.manifest
    new = changed(base, changes)
    recodes = changes.recode or (new.capture, new.codec) != (base.capture, base.codec)
    recoder = Recoder(cache.storage, base, new) if recodes else None
    indexes = (read_index(cache, entry) for entry in base.shards)
    shards: list[ShardEntry] = []
    tables: dict[str, FileEntry] = {} if recodes else dict(base.tables)
    with new_cache(target, "cache-tools repack", source, changes) as storage:
        for name, file in files_beside_shards(base.model_copy(update={"tables": tables, "shard_table": None})):
            share_file(cache.storage, name, storage, name, file)
        done = 0
        for number, parts in enumerate(grouped(indexes, changes.tokens_per_shard, mixes_tables=recodes)):
            if recoder is not None and not tables:
                table = recoder.code_table(parts)
                recoder.use_table(table)
                digest = table_digest(table)
                tables[digest] = storage.write(table_path(digest), encode_table(table))
            digest = parts[0].index.table if recoder is None else next(iter(tables))
            name, signals = shard_name(number), signals_of(base)
            shards.append(join_parts(cache.storage, storage, parts, signals, name, digest, recoder or unchanged))
            done += shards[-1].samples
            advance(done, base.totals.samples)
        notes = "; ".join(what_changed(base, new, recodes))
        derived = Derivation(action="repack", sources=[source_of(base)], notes=notes)
        manifest = derived_manifest(new, shards, derived, rewritten=True, tables=tables)
        write_manifest(storage, manifest)
    return Repacked(
        shards_before=len(base.shards),
        shards=len(shards),
        samples=manifest.totals.samples,
        tokens=manifest.totals.tokens,
        bytes_before=sum(base.totals.bytes.values()),
        bytes=sum(manifest.totals.bytes.values()),
        coded_anew=recodes,
        changes=notes,
    )


def changed(base: Manifest, changes: Changes) -> Manifest:
    """``base`` with the requested settings. Raises UserError when the cache stores too little for them."""
    wanted = {
        "logprobs": changes.logprobs,
        "logprob_steps_per_nat": changes.steps_per_nat,
        "zstd_level": changes.zstd_level,
    }
    settings = base.codec.model_dump() | {name: value for name, value in wanted.items() if value is not None}
    codec = validate(CodecConfig, settings, where="codec")
    if changes.steps_per_nat is not None and codec.logprobs != "steps":
        raise UserError(
            f"codec.logprob_steps_per_nat: {changes.steps_per_nat}: log-probabilities are stored as {codec.logprobs}, "
            "without steps; add --logprobs steps"
        )
    check_not_finer(base.codec, codec)
    return base.model_copy(
        update={
            "codec": codec,
            "capture": base.capture if changes.k is None else with_k(base.capture, changes.k),
            "tokens_per_shard": changes.tokens_per_shard or base.tokens_per_shard,
        }
    )


def with_k(capture: CaptureConfig, k: int) -> CaptureConfig:
    """``capture`` with at most ``k`` entries a row. Raises UserError when the cache does not allow it."""
    stored = capture.logits.k
    if k > stored:
        raise UserError(
            f"capture.logits.k: {k}, wanted at most {stored}, the entries a row that the cache stores; lower --k, or "
            "cache the teacher again"
        )
    return capture.model_copy(update={"logits": capture.logits.model_copy(update={"k": k})})


def what_changed(base: Manifest, new: Manifest, recoded: bool) -> list[str]:
    """Each changed setting with its old and new value."""
    keys = ("capture", "codec", "tokens_per_shard")
    before, now = base.model_dump(include=set(keys)), new.model_dump(include=set(keys))
    found = [f"{name}: {old} → {new}" for key in keys for name, old, new in differences(key, before[key], now[key])]
    return [*found, "one code table"] if recoded else found


def grouped(
    indexes: Iterable[ShardIndex], tokens_per_shard: int | None, mixes_tables: bool
) -> Iterator[list[ShardSlice]]:
    """Group consecutive samples into shards of at least ``tokens_per_shard`` tokens (None: keep the shards).

    A shard ends early before a key that it already has, since keys within a shard are unique; where indexes start or
    stop listing layers; and, unless ``mixes_tables``, where the code table changes.
    """
    parts: list[ShardSlice] = []
    keys: set[str] = set()
    n_tokens = 0
    for index in indexes:
        if parts and (tokens_per_shard is None or not _alike(parts[0].index, index, mixes_tables)):
            yield parts
            parts, keys, n_tokens = [], set(), 0
        rows: list[int] = []
        for row, (key, n) in enumerate(zip(index.keys, index.num_tokens, strict=True)):
            full = tokens_per_shard is not None and n_tokens >= tokens_per_shard
            if full or key in keys or len(keys) == MAX_SHARD_SAMPLES:
                yield [*parts, ShardSlice(index, rows)] if rows else parts
                parts, rows, keys, n_tokens = [], [], set(), 0
            rows.append(row)
            keys.add(key)
            n_tokens += n
        parts.append(ShardSlice(index, rows))
    if parts:
        yield parts


def _alike(one: ShardIndex, other: ShardIndex, mixes_tables: bool) -> bool:
    return (mixes_tables or one.table == other.table) and (one.layers is None) == (other.layers is None)
