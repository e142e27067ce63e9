"""Planning: split the corpus into units of work. The plan depends only on the corpus and the configuration.

It produces one ``tokens`` tar per unit, the teacher's output head if ``capture.final`` is set, and a manifest without
shards. Any worker, anywhere, can (re)do any unit from these; resuming means doing the units without a commit mark.
"""

import gc
import io
import logging
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any

from schemas.cache_config import CacheConfig, OutputConfig
from schemas.difference import differences
from schemas.digests import payload_digest
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import (
    MAX_SAMPLE_BYTES,
    Bundles,
    CorpusCounts,
    CorpusInfo,
    Manifest,
    MemberIndex,
    TeacherInfo,
    Totals,
    Unit,
)
from schemas.strict import FORMAT_MINOR
from teacher_cache.codec.bundles import bundle_places, is_bundle
from teacher_cache.codec.tokens import decode_tokens
from teacher_cache.corpus import Corpus, corpus_fingerprint
from teacher_cache.corpus.fingerprint import with_file_names
from teacher_cache.engines.known import check_known
from teacher_cache.lengths import check_length
from teacher_cache.process import paused_garbage_collection
from teacher_cache.progress import reading
from teacher_cache.records import TokenSample
from teacher_cache.shards import lease
from teacher_cache.shards.answers import MAX_FILES
from teacher_cache.shards.holder import Holder
from teacher_cache.shards.marks import mark_names, own_names, read_manifest, tar_name, write_manifest
from teacher_cache.shards.new_place import UNDER_WAY, clear, planned_or_cleared, sign_of
from teacher_cache.shards.shard_table import shard_name, with_lists
from teacher_cache.shards.storage import MANIFEST, Storage, file_entry
from teacher_cache.shards.tar import checksum
from teacher_cache.shards.vocabulary_file import write_vocabulary
from teacher_cache.shards.writer import write_tokens
from teacher_cache.signals.side_table import check_teacher, needs_head
from teacher_cache.teacher import describe_teacher, load_model_config, load_tokenizer, older_fingerprint
from teacher_cache.teacher_head import write_head
from teacher_cache.teacher_vocabulary import teacher_vocabulary
from teacher_cache.token_batch import TokenBatch, in_parts
from teacher_cache.tokenizer import describe_tokenization
from teacher_cache.vocabulary import within_vocabulary

logger = logging.getLogger(__name__)

PLANNING = "teacher-cache, planning"  # command name in the lease
OTHER_FILES = 10_000  # tables, signatures, and what killed workers leave
NO_COUNTS = CorpusCounts(**dict.fromkeys(CorpusCounts.model_fields, 0))
NO_TOTALS = Totals(samples=0, tokens=0, bytes={}, index_bytes=0)


def load_or_make_plan(config: CacheConfig, storage: Storage) -> Manifest:
    """Return the manifest of the cache at ``storage``, planning it first if there is none.

    Of several processes that start at once, one plans and the others wait. Raises UserError if the existing cache was
    planned with another configuration (naming the differing keys), or for a bad corpus.
    """
    tokenizer = load_tokenizer(config.teacher)
    wanted = empty_plan(config, tokenizer)
    if not storage.exists(MANIFEST):
        with lease.only_place(storage, PLANNING, wait_for_workers) as owned:
            if not storage.exists(MANIFEST):  # another process may have planned meanwhile
                return _make_plan(config, wanted, tokenizer, owned.storage)
    present = read_manifest(storage)
    if present.derived is not None:
        raise UserError(
            f"{storage.where(MANIFEST)}: this cache was derived from others ({present.derived.action}), so a run "
            "cannot add to it; choose another output.path"
        )
    _check_same(present, _in_older_terms(wanted, present, config), storage)
    return with_lists(storage, present)


def wait_for_workers(holder: Holder | None) -> bool:
    """Wait policy: wait for a holder that is itself a caching run."""
    return holder is not None and holder.command.startswith("teacher-cache")


def _make_plan(config: CacheConfig, wanted: Manifest, tokenizer: Any, storage: Storage) -> Manifest:
    lease.end_dead_parts(storage, PLANNING)
    _make_room(storage)
    corpus = Corpus(config.corpus, tokenizer)
    with planned_or_cleared(storage):
        head = write_head(config.teacher, storage) if needs_head(config.capture) else None
        vocabulary = write_vocabulary(teacher_vocabulary(config.teacher, config.corpus, tokenizer), storage)
        batches = within_vocabulary(reading(corpus.batches()), wanted, tokenizer, config.teacher.path)
        with paused_garbage_collection():
            units = _write_units(batches, storage, config.output, most_units(len(config.capture.signals)))
        plan = wanted.model_copy(
            update={
                "format_minor": FORMAT_MINOR,
                "head": head,
                "vocabulary": vocabulary,
                "units": units,
                "corpus": wanted.corpus.model_copy(update={"counts": corpus.counts}),
            }
        )
        plan = write_manifest(storage, plan)
    logger.info("planned %d units, %d tokens", len(units), corpus.counts.tokens)
    return plan


def _make_room(storage: Storage) -> None:
    """Remove leftovers of a killed plan, and write a sign for the next one. Raises UserError if files are in the way.

    Files whose names no cache uses are left alone.
    """
    names = storage.names()
    if UNDER_WAY in names:
        clear(storage)
    elif marks := mark_names(storage):
        raise UserError(
            f"{storage.where(MANIFEST)}: missing, although there are {len(marks)} committed shards ({marks[0]}, …); "
            "restore it, or choose another output.path"
        )
    elif in_the_way := own_names(names):
        raise UserError(
            f"{storage.where(in_the_way[0])}: exists without a manifest, and a new cache might overwrite it; remove "
            "it, or choose another output.path"
        )
    storage.write(UNDER_WAY, sign_of(PLANNING))


def empty_plan(config: CacheConfig, tokenizer: Any) -> Manifest:
    """Manifest of a cache before planning: no units. Raises UserError if the teacher does not support the capture."""
    model_config = load_model_config(config.teacher)
    text_config = model_config.get_text_config()
    check_length(config, text_config)
    check_teacher(config.capture, text_config, config.corpus.max_tokens)
    check_known(config, model_config)
    teacher = describe_teacher(config.teacher)
    _check_k(config, teacher)
    return Manifest(
        teacher=teacher,
        tokenizer=describe_tokenization(tokenizer, config.corpus),
        corpus=CorpusInfo(
            fingerprint=corpus_fingerprint(config.corpus), settings=with_file_names(config.corpus), counts=NO_COUNTS
        ),
        capture=config.capture,
        codec=config.codec,
        provenance=config.provenance,
        tokens_per_shard=config.output.tokens_per_shard,
        units=[],
        complete=False,
        shards=[],
        tables={},
        totals=NO_TOTALS,
    )


def _check_k(config: CacheConfig, teacher: TeacherInfo) -> None:
    k = config.capture.logits.k
    if k > teacher.vocab_size:
        raise UserError(
            f"capture.logits.k: {k} exceeds the vocabulary size of {teacher.name} ({teacher.vocab_size}); lower it"
        )
    if config.corpus.max_tokens * config.capture.row_bytes > MAX_SAMPLE_BYTES:
        raise UserError(
            f"capture: {config.capture.row_bytes} bytes a row (in memory) times corpus.max_tokens "
            f"{config.corpus.max_tokens} exceed the limit of {MAX_SAMPLE_BYTES} bytes a sequence; lower "
            "capture.logits.k, capture.draws.n or corpus.max_tokens"
        )


_IDENTITY = {
    "teacher": "teacher",
    "tokenizer": "teacher.path (tokenizer)",
    "corpus.fingerprint": "corpus.sources (content)",
    "corpus.settings": "corpus",
    "capture": "capture",
    "codec": "codec",
    "tokens_per_shard": "output.tokens_per_shard",
}


def _check_same(present: Manifest, wanted: Manifest, storage: Storage) -> None:
    """Raise UserError naming each setting in which ``wanted`` differs from the existing cache."""
    lists = {"units", "shards", "shard_table", "tables"}  # long, and not part of the identity
    before, now = present.model_dump(exclude=lists), wanted.model_dump(exclude=lists)
    for field in ("files", "chat_template"):  # plans of the first version lack them
        if field not in before["tokenizer"]:
            now["tokenizer"].pop(field, None)
    differing = [
        f"{name}: {old!r} in the cache, {new!r} now"
        for path, key in _IDENTITY.items()
        for name, old, new in differences(key, _lookup(before, path), _lookup(now, path))
    ]
    if differing:
        raise UserError(
            f"{storage.where(MANIFEST)}: this cache was made with other settings: {'; '.join(differing)}; choose "
            "another output.path, or use the cache's settings"
        )


def _in_older_terms(wanted: Manifest, present: Manifest, config: CacheConfig) -> Manifest:
    """``wanted`` with the older form of the teacher's fingerprint, if that is what ``present`` has."""
    found = present.teacher.fingerprint
    if found == wanted.teacher.fingerprint or found != older_fingerprint(config.teacher):
        return wanted
    return wanted.model_copy(update={"teacher": wanted.teacher.model_copy(update={"fingerprint": found})})


def _lookup(tree: dict, path: str) -> object:
    node: object = tree
    for key in path.split("."):
        node = node[key]  # type: ignore[index]
    return node


def most_units(signals: int) -> int:
    """Units of a cache with so many signals beside ``tokens`` whose files a listing may have: tars, mark and lease."""
    return (MAX_FILES - OTHER_FILES) // (signals + 3)


def _write_units(batches: Iterable[TokenBatch], storage: Storage, output: OutputConfig, most: int) -> list[Unit]:
    """Write the units' token tars; returns the units. Raises UserError if there are more than ``most``."""
    units: list[Unit] = []
    for number, part in enumerate(in_parts(batches, output.tokens_per_shard)):
        if number == most:
            raise UserError(
                f"output.tokens_per_shard: {output.tokens_per_shard}: makes more than {most} shards of this corpus, "
                "which are too many files to list; set a larger one, or cache the corpus in parts"
            )
        index = write_tokens(storage, shard_name(number), part, output.bundle_short_samples)
        gc.collect(0)  # garbage of this unit
        tokens = len(part.input_ids)
        units.append(Unit(name=shard_name(number), samples=len(part), tokens=tokens, tokens_file=index.file))
    return units


def numbered_parts(samples: Iterable[TokenSample], least_tokens: int) -> Iterator[tuple[int, TokenSample]]:
    """Number the samples by part, from 0; a part is as few consecutive samples as have ``least_tokens`` tokens."""
    number = tokens = 0
    for sample in samples:
        if tokens >= least_tokens:
            number, tokens = number + 1, 0
        yield number, sample
        tokens += len(sample.input_ids)


def read_unit(storage: Storage, unit: Unit, vocab_size: int) -> tuple[list[TokenSample], MemberIndex]:
    """Read a unit's planned sequences, and the index of their tar. Raises CorruptCacheError."""
    name = tar_name(unit.name, "tokens")
    data = storage.read(name)
    entry = file_entry(data)
    if entry != unit.tokens_file:
        raise CorruptCacheError(
            f"{storage.where(name)}: sha256 is {entry.sha256}, the plan says {unit.tokens_file.sha256}; restore the "
            "file, or delete the cache and plan again"
        )
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = [(member.offset_data, member.size) for member in tar]
    places, bundles = members, None
    if is_bundle(data[members[0][0] : sum(members[0])]):
        found = [bundle_places(data[offset : offset + size]) for offset, size in members]
        places = [(offset + at, n) for (offset, _), records in zip(members, found, strict=True) for at, n in records]
        offsets, sizes = zip(*members, strict=True)
        bundles = Bundles(samples=[len(records) for records in found], offsets=offsets, sizes=sizes)
    payloads = [data[offset : offset + size] for offset, size in places]
    index = MemberIndex(
        file=entry,
        offsets=[offset for offset, _ in places],
        sizes=[size for _, size in places],
        checksums=[checksum(payload) for payload in payloads],
        digests=b"".join(map(payload_digest, payloads)),
        bundles=bundles,
    )
    return [decode_tokens(payload, None, vocab_size) for payload in payloads], index
