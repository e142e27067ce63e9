"""A longer cache made from another one, without a teacher.

Samples are prefixes, of 512 to 2,048 tokens, of the source's sequences. By causal attention their rows are true rows of
the teacher. They are encoded and written as in a caching run.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from schemas.manifest import Manifest, MemberIndex, ShardIndex, Signal, Unit
from teacher_cache.codec.permutation import CodeTable, encode_table, table_path
from teacher_cache.codec.tokens import encode_tokens
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.shards.marks import assemble, read_table, tar_name, write_mark
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.shards.tar import TarWriter
from teacher_cache.signals.logits.codec import LogitsCodec

MIN_TOKENS, MAX_TOKENS = 512, 2048
SAMPLES_PER_SHARD = 64


def longer_cache(source: Path, folder: Path, per_sequence: int) -> None:
    """Write ``per_sequence`` prefixes of every sequence of the cache ``source`` to ``folder``, unless they exist."""
    reader, storage = CacheReader(str(source)), Storage(str(folder))
    made_of = folder.with_name(f"{folder.name}.json")
    text = json.dumps({"source": reader.manifest.digest(), "per sequence": per_sequence})
    if made_of.exists() and made_of.read_text() == text:
        return
    made_of.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    chosen = choose(reader.num_tokens, per_sequence)
    table_digest = next(iter(reader.manifest.tables))
    table = read_table(Storage(str(source)), table_digest, reader.manifest.teacher.vocab_size)
    storage.write(table_path(table_digest), encode_table(table))
    codec = LogitsCodec(reader.manifest.capture.logits, reader.manifest.codec, CodeTable(table))
    units: list[Unit] = []
    for start in range(0, len(chosen), SAMPLES_PER_SHARD):
        samples = [prefix(reader, *which) for which in chosen[start : start + SAMPLES_PER_SHARD]]
        units.append(write_shard(storage, f"shard-{len(units):06d}", samples, codec, table_digest))
    storage.write(MANIFEST, assemble(storage, planned(reader.manifest, units)).to_json().encode())
    made_of.write_text(text)


def choose(num_tokens: np.ndarray, per_sequence: int) -> list[tuple[int, int]]:
    """Distinct pairs of sequence number and prefix length.

    Prefixes of one sequence are spaced as far apart as possible, so that no compressor sees a row twice.
    """
    rng = np.random.default_rng(0)
    lengths = [
        rng.choice(np.arange(MIN_TOKENS, min(int(longest), MAX_TOKENS) + 1), per_sequence, replace=False)
        for longest in num_tokens
    ]
    return [(number, int(length)) for turn in zip(*lengths, strict=True) for number, length in enumerate(turn)]


def prefix(reader: CacheReader, number: int, length: int) -> tuple[TokenSample, LogitsSample]:
    """The first ``length`` tokens of a sample, as a new sample."""
    tokens, logits = reader.read_tokens(number), reader.read_logits(number)
    loss_mask, next_logprob = tokens.loss_mask[:length].copy(), logits.next_logprob[:length].copy()
    loss_mask[-1], next_logprob[-1] = False, np.nan
    cut_tokens = replace(
        tokens,
        key=hashlib.sha256(f"{tokens.key} {length}".encode()).hexdigest()[:32],
        text=tokens.text.encode()[: tokens.byte_end[length - 1]].decode(errors="ignore"),
        input_ids=tokens.input_ids[:length],
        loss_mask=loss_mask,
        byte_start=tokens.byte_start[:length],
        byte_end=tokens.byte_end[:length],
    )
    cut_logits = LogitsSample(
        num_tokens=length,
        positions=logits.positions[:length],
        counts=logits.counts[:length],
        ids=logits.ids[:length],
        logprobs=logits.logprobs[:length],
        next_logprob=next_logprob,
        log_partition=logits.log_partition[:length],
    )
    return cut_tokens, cut_logits


def write_shard(
    storage: Storage,
    name: str,
    samples: Sequence[tuple[TokenSample, LogitsSample]],
    codec: LogitsCodec,
    table: str,
) -> Unit:
    """Write and commit one shard."""
    keys, num_tokens = [tokens.key for tokens, _ in samples], [logits.num_tokens for _, logits in samples]
    tokens_index = write_tar(storage, name, "tokens", keys, [encode_tokens(tokens) for tokens, _ in samples])
    logits_index = write_tar(storage, name, "logits", keys, [codec.encode(logits) for _, logits in samples])
    signals: dict[Signal, MemberIndex] = {"tokens": tokens_index, "logits": logits_index}
    write_mark(storage, ShardIndex(name=name, keys=keys, num_tokens=num_tokens, table=table, signals=signals))
    return Unit(name=name, samples=len(samples), tokens=sum(num_tokens), tokens_file=tokens_index.file)


def write_tar(
    storage: Storage, shard: str, signal: Signal, keys: Sequence[str], payloads: Sequence[bytes]
) -> MemberIndex:
    """Write one signal's tar."""
    with storage.staged(tar_name(shard, signal)) as path, TarWriter(path, signal) as tar:
        for key, payload in zip(keys, payloads, strict=True):
            tar.add(key, payload)
    return tar.index()


def planned(source: Manifest, units: Sequence[Unit]) -> Manifest:
    """The manifest of a planned cache of ``units``, with nothing committed; otherwise as ``source``."""
    totals = {"samples": sum(unit.samples for unit in units), "tokens": sum(unit.tokens for unit in units)}
    counts = source.corpus.counts.model_copy(update=totals)
    return source.model_copy(
        update={
            "corpus": source.corpus.model_copy(update={"counts": counts}),
            "tokens_per_shard": max(unit.tokens for unit in units),
            "units": list(units),
            "complete": False,
            "shards": [],
            "tables": {},
        }
    )
