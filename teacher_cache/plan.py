"""Planning: from the corpus to units of work. The plan depends on the corpus and the configuration only.

The plan's product is one ``tokens`` tar per unit, the teacher's output head if that is asked for, and a manifest
without shards: any worker, anywhere, can (re)do any unit from them, and resuming is "the units with no commit mark".
"""

import gc
import io
import logging
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

from schemas.cache_config import CacheConfig, CorpusConfig, OutputConfig
from schemas.difference import differences
from schemas.digests import payload_digest
from schemas.errors import ConflictError, CorruptCacheError, UserError
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
from teacher_cache.codec.bundles import bundle_places, is_bundle
from teacher_cache.codec.tokens import decode_tokens
from teacher_cache.corpus import Corpus, corpus_fingerprint
from teacher_cache.engines.known import check_known
from teacher_cache.lengths import check_length
from teacher_cache.process import paused_garbage_collection
from teacher_cache.progress import reading
from teacher_cache.records import TokenSample
from teacher_cache.shards import lease
from teacher_cache.shards.holder import Holder
from teacher_cache.shards.marks import mark_names, own_names, read_manifest, tar_name, write_manifest
from teacher_cache.shards.new_place import UNDER_WAY, clear, sign_of
from teacher_cache.shards.storage import MANIFEST, Storage, file_entry
from teacher_cache.shards.table import shard_name, with_lists
from teacher_cache.shards.tar import checksum
from teacher_cache.shards.writer import write_tokens
from teacher_cache.signals.side_table import check_teacher, needs_head
from teacher_cache.teacher import describe_teacher, load_model_config, load_tokenizer, older_fingerprint
from teacher_cache.teacher_head import write_head
from teacher_cache.token_batch import TokenBatch, in_parts
from teacher_cache.tokenizer import describe_tokenization
from teacher_cache.vocabulary import within_vocabulary

logger = logging.getLogger(__name__)

PLANNING = "teacher-cache, planning"  # as whose a lease is taken
NO_COUNTS = CorpusCounts(**dict.fromkeys(CorpusCounts.model_fields, 0))
NO_TOTALS = Totals(samples=0, tokens=0, bytes={}, index_bytes=0)


def load_or_make_plan(config: CacheConfig, storage: Storage) -> Manifest:
    """The manifest of the planned cache at ``storage``: the present one if it is of this configuration, else a new one.

    Of processes that find none at the same time one plans, and the others wait for it. Raises UserError when the cache
    there was planned differently (the differing keys are named), or on a bad corpus.
    """
    tokenizer = load_tokenizer(config.teacher)
    wanted = empty_plan(config, tokenizer)
    if not storage.exists(MANIFEST):
        with lease.only_place(storage, PLANNING, wait_for_workers) as owned:
            if not storage.exists(MANIFEST):  # by now
                return _make_plan(config, wanted, tokenizer, owned.storage)
    present = read_manifest(storage)
    if present.derived is not None:
        raise UserError(
            f"{storage.where(MANIFEST)}: this cache was made of others ({present.derived.action}), not by a run, and "
            "nothing can be added to it; choose another output.path"
        )
    _check_same(present, _in_older_terms(wanted, present, config), storage)
    return with_lists(storage, present)


def wait_for_workers(holder: Holder | None) -> bool:
    """Whether one waits for the end of what another process does here: if it is a run as this one."""
    return holder is not None and holder.command.startswith("teacher-cache")


def _make_plan(config: CacheConfig, wanted: Manifest, tokenizer: Any, storage: Storage) -> Manifest:
    lease.end_dead_parts(storage, PLANNING)
    _make_room(storage)
    corpus = Corpus(config.corpus, tokenizer)
    try:
        head = write_head(config.teacher, storage) if needs_head(config.capture) else None
        batches = within_vocabulary(reading(corpus.batches()), wanted, tokenizer, config.teacher.path)
        with paused_garbage_collection():
            units, minor = _write_units(batches, storage, config.output)
        plan = wanted.model_copy(
            update={
                "format_minor": minor,
                "head": head,
                "units": units,
                "corpus": wanted.corpus.model_copy(update={"counts": corpus.counts}),
            }
        )
        plan = write_manifest(storage, plan)
    except ConflictError:  # what is there is another's by now
        raise
    except UserError:
        clear(storage)
        storage.delete(UNDER_WAY)
        raise
    storage.delete(UNDER_WAY)
    logger.info("planned %d units, %d tokens", len(units), corpus.counts.tokens)
    return plan


def _make_room(storage: Storage) -> None:
    """Remove what a killed plan left, and leave a sign for the next one. Raises UserError when files stand in the way.

    Files that a cache has no name for may be there, and stay.
    """
    names = storage.names()
    if UNDER_WAY in names:
        clear(storage)
    elif marks := mark_names(storage):
        raise UserError(
            f"{storage.where(MANIFEST)}: missing, though {len(marks)} committed shards are there ({marks[0]}, …); "
            "restore it, or choose another output.path"
        )
    elif taken := own_names(names):
        raise UserError(
            f"{storage.where(taken[0])}: is there without a manifest, and a new cache might replace it; remove it, or "
            "choose another output.path"
        )
    storage.write(UNDER_WAY, sign_of(PLANNING))


def empty_plan(config: CacheConfig, tokenizer: Any) -> Manifest:
    """The manifest of a cache of which nothing is planned yet. Raises UserError when the teacher cannot give it."""
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
            fingerprint=corpus_fingerprint(config.corpus), settings=_public(config.corpus), counts=NO_COUNTS
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
            f"capture.logits.k: {k}: larger than the vocabulary of {teacher.name} ({teacher.vocab_size}); lower it"
        )
    if config.corpus.max_tokens * config.capture.row_bytes > MAX_SAMPLE_BYTES:
        raise UserError(
            f"capture: {config.capture.row_bytes} bytes a row in memory, and corpus.max_tokens is "
            f"{config.corpus.max_tokens}: readers take at most {MAX_SAMPLE_BYTES} bytes a sequence; lower "
            "capture.logits.k, capture.draws.n or corpus.max_tokens"
        )


def _public(corpus: CorpusConfig) -> CorpusConfig:
    """The corpus settings without the places where the files happened to lie."""
    sources = [source.model_copy(update={"path": PurePath(source.path).name}) for source in corpus.sources]
    template = None if corpus.chat_template is None else PurePath(corpus.chat_template).name
    return corpus.model_copy(update={"sources": sources, "chat_template": template})


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
    """Raise UserError naming each setting in which ``wanted`` differs from the cache that is there."""
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
            f"{storage.where(MANIFEST)}: this cache was made differently: {'; '.join(differing)}. Choose another "
            "output.path, or the settings of the cache"
        )


def _in_older_terms(wanted: Manifest, present: Manifest, config: CacheConfig) -> Manifest:
    """``wanted`` with the teacher's fingerprint as ``present`` has it, if it is that of the same teacher."""
    found = present.teacher.fingerprint
    if found == wanted.teacher.fingerprint or found != older_fingerprint(config.teacher):
        return wanted
    return wanted.model_copy(update={"teacher": wanted.teacher.model_copy(update={"fingerprint": found})})


def _lookup(tree: dict, path: str) -> object:
    node: object = tree
    for key in path.split("."):
        node = node[key]  # type: ignore[index]
    return node


def _write_units(batches: Iterable[TokenBatch], storage: Storage, output: OutputConfig) -> tuple[list[Unit], int]:
    """The units, and the minor version of the format that their shards need."""
    units: list[Unit] = []
    minor = 0
    for number, part in enumerate(in_parts(batches, output.tokens_per_shard)):
        index = write_tokens(storage, shard_name(number), part, output.bundle_short_samples)
        gc.collect(0)  # what this unit left behind
        tokens = len(part.input_ids)
        units.append(Unit(name=shard_name(number), samples=len(part), tokens=tokens, tokens_file=index.file))
        minor = max(minor, index.format_minor)
    return units, minor


def numbered_parts(samples: Iterable[TokenSample], least_tokens: int) -> Iterator[tuple[int, TokenSample]]:
    """Each sample with the number, from 0, of its part: consecutive samples that together have ``least_tokens``."""
    number = tokens = 0
    for sample in samples:
        if tokens >= least_tokens:
            number, tokens = number + 1, 0
        yield number, sample
        tokens += len(sample.input_ids)


def read_unit(storage: Storage, unit: Unit, vocab_size: int) -> tuple[list[TokenSample], MemberIndex]:
    """The planned sequences of a unit and the index of the tar that holds them. Raises CorruptCacheError."""
    name = tar_name(unit.name, "tokens")
    data = storage.read(name)
    entry = file_entry(data)
    if entry != unit.tokens_file:
        raise CorruptCacheError(
            f"{storage.where(name)}: sha256 is {entry.sha256}, the plan says {unit.tokens_file.sha256}; delete the "
            "cache and plan again"
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
