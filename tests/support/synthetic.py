"""Small synthetic caches whose numbers are right: every stored value follows from the same random logits.

Shape letters as in ``teacher_cache.records``; V is the vocabulary. Needs no model and no engine.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from schemas.cache_config import CaptureConfig, CodecConfig, CorpusConfig, LogitsCapture, Provenance, SourceConfig
from schemas.manifest import (
    CorpusCounts,
    CorpusInfo,
    FileEntry,
    Manifest,
    MemberIndex,
    ShardIndex,
    Signal,
    TeacherInfo,
    TokenizerInfo,
    Totals,
    Unit,
)
from schemas.strict import FORMAT_MINOR
from teacher_cache.codec.permutation import CodeTable, build_code_table, encode_table, table_digest, table_path
from teacher_cache.codec.tokens import encode_tokens
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.shards.marks import assemble, tar_name, write_mark
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.shards.tar import TarWriter
from teacher_cache.shards.vocabulary_file import write_vocabulary
from teacher_cache.signals.logits.capture import select_counts
from teacher_cache.signals.logits.codec import LogitsCodec
from teacher_cache.token_table import TokenTable, Vocabulary

Pair = tuple[TokenSample, LogitsSample]


def token_sample(input_ids: Sequence[int], layer: str = "base", source_id: str = "synthetic#0") -> TokenSample:
    """A TokenSample of these ids: token ``i`` is spelled ``⟨i⟩`` (several bytes a character); all rows count."""
    pieces = [f"⟨{i}⟩".encode() for i in input_ids]
    ends = np.cumsum([len(piece) for piece in pieces])
    loss_mask = np.ones(len(pieces), bool)
    loss_mask[-1] = False
    ids = np.array(input_ids, np.uint32)
    return TokenSample(
        key=hashlib.sha256(ids.tobytes() + layer.encode()).hexdigest()[:32],
        source_id=source_id,
        layer=layer,
        text=b"".join(pieces).decode(),
        input_ids=ids,
        loss_mask=loss_mask,
        byte_start=np.concatenate([[0], ends[:-1]]).astype(np.uint32),
        byte_end=ends.astype(np.uint32),
    )


def logits_sample(
    logits_SV: np.ndarray, input_ids: np.ndarray, capture: LogitsCapture, loss_mask: np.ndarray | None = None
) -> LogitsSample:
    """What ``capture`` keeps of these logits, in float64 arithmetic, rounded to the record's float32.

    ``loss_mask``: bool [S]; without it all rows but the last count.
    """
    num_tokens = len(input_ids)
    if loss_mask is None:
        loss_mask = np.arange(num_tokens) < num_tokens - 1
    positions = np.flatnonzero(loss_mask | (capture.positions == "all")).astype(np.int32)
    logits_PV = np.asarray(logits_SV, np.float64)[positions]
    logprobs_PV = logits_PV - _logsumexp(logits_PV)[:, None]
    log_partition_PT = np.stack([_logsumexp(logprobs_PV / t) for t in capture.temperatures], axis=1)
    ids_PK = np.argsort(-logprobs_PV, axis=1, kind="stable")[:, : capture.k]
    logprobs_PK = np.take_along_axis(logprobs_PV, ids_PK, axis=1).astype(np.float32)
    counts = select_counts(logprobs_PK, capture)
    beyond = np.arange(capture.k) >= counts[:, None]
    following = np.append(input_ids[1:], 0).astype(np.int64)[positions]
    next_logprob = np.take_along_axis(logprobs_PV, following[:, None], axis=1)[:, 0]
    return LogitsSample(
        num_tokens=num_tokens,
        positions=positions,
        counts=counts,
        ids=np.where(beyond, 0, ids_PK).astype(np.int32),
        logprobs=np.where(beyond, np.float32(-np.inf), logprobs_PK),
        next_logprob=np.where(positions == num_tokens - 1, np.nan, next_logprob).astype(np.float32),
        log_partition=log_partition_PT.astype(np.float32),
    )


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]


def random_pair(
    rng: np.random.Generator,
    num_tokens: int,
    vocab_size: int,
    capture: LogitsCapture,
    counting: float = 1.0,
    scale: float = 1.0,
) -> Pair:
    """Random ids, and logits that favour low ids, so that the code table has something to order.

    Of the rows that could count, each does with probability ``counting``. ``scale``: of the logits; 0: all are alike.
    """
    ids = np.minimum(rng.geometric(min(1.0, 20 / vocab_size), num_tokens) - 1, vocab_size - 1)
    sample = token_sample(ids.tolist())
    sample = replace(sample, loss_mask=sample.loss_mask & (rng.random(num_tokens) < counting))
    logits_SV = rng.normal(0, 2, (num_tokens, vocab_size)) - 0.5 * np.log1p(np.arange(vocab_size))
    return sample, logits_sample(scale * logits_SV, sample.input_ids, capture, sample.loss_mask)


def random_shards(
    lengths: Sequence[Sequence[int]],
    vocab_size: int = 300,
    capture: LogitsCapture | None = None,
    seed: int = 0,
    counting: float = 1.0,
    scale: float = 1.0,
) -> list[list[Pair]]:
    """For each shard the samples with these numbers of tokens."""
    rng = np.random.default_rng(seed)
    capture = capture or LogitsCapture(k=8)
    return [[random_pair(rng, n, vocab_size, capture, counting, scale) for n in shard] for shard in lengths]


def write_cache(
    url: str,
    shards: Sequence[Sequence[Pair]],
    vocab_size: int = 300,
    capture: LogitsCapture | None = None,
    codec: CodecConfig | None = None,
    commit: int | None = None,
    digests: bool = True,
) -> Manifest:
    """Write a valid cache of these samples to ``url``; returns its manifest. Without ``digests`` it is of format 1.0.

    ``capture`` must be what the samples were made with (default: top 8, temperatures 1 and 3). Only the first
    ``commit`` shards are committed if given: an interrupted run.
    """
    storage = Storage(url)
    capture = capture or LogitsCapture(k=8)
    codec = codec or CodecConfig()
    used = np.concatenate([logits.ids.reshape(-1) for shard in shards for _, logits in shard])
    table = build_code_table(np.bincount(used, minlength=vocab_size))
    digest = table_digest(table)
    storage.write(table_path(digest), encode_table(table))
    logits_codec = LogitsCodec(capture, codec, CodeTable(table))
    units = []
    for number, shard in enumerate(shards):
        name = f"shard-{number:06d}"
        tokens = write_tar(storage, name, "tokens", [(t.key, encode_tokens(t)) for t, _ in shard])
        num_tokens = [len(t.input_ids) for t, _ in shard]
        units.append(Unit(name=name, samples=len(shard), tokens=sum(num_tokens), tokens_file=tokens.file))
        if commit is not None and number >= commit:
            continue
        logits = write_tar(storage, name, "logits", [(t.key, logits_codec.encode(rows)) for t, rows in shard])
        index = ShardIndex(
            name=name,
            keys=[t.key for t, _ in shard],
            num_tokens=num_tokens,
            layers=[t.layer for t, _ in shard],
            table=digest,
            signals={"tokens": tokens, "logits": logits} if digests else without_digests(tokens=tokens, logits=logits),
        )
        write_mark(storage, index)
    plan = _plan(units, shards, vocab_size, capture, codec)
    if digests:
        vocabulary = write_vocabulary(synthetic_vocabulary(vocab_size), storage)
        plan = plan.model_copy(update={"vocabulary": vocabulary, "format_minor": FORMAT_MINOR})
    manifest = assemble(storage, plan)
    storage.write(MANIFEST, manifest.to_json().encode())
    return manifest


def synthetic_vocabulary(size: int) -> Vocabulary:
    """Tokens as ``token_sample`` spells them, of which the first is special and a stop token."""
    first = np.arange(size) == 0
    return Vocabulary(TokenTable.of([f"⟨{i}⟩".encode() for i in range(size)]), first, first)


def without_digests(**members: MemberIndex) -> dict[Signal, MemberIndex]:
    """Indexes as format 1.0 has them."""
    return {signal: member.model_copy(update={"digests": None}) for signal, member in members.items()}  # type: ignore[misc]


def write_tar(storage: Storage, shard: str, signal: str, members: Sequence[tuple[str, bytes]]) -> MemberIndex:
    """Write one signal's tar from (key, payload) pairs."""
    with storage.staged(tar_name(shard, signal)) as path, TarWriter(path, signal) as tar:
        for key, payload in members:
            tar.add(key, payload)
    return tar.index()


def _plan(
    units: list[Unit], shards: Sequence[Sequence[Pair]], vocab_size: int, capture: LogitsCapture, codec: CodecConfig
) -> Manifest:
    samples = [tokens for shard in shards for tokens, _ in shard]
    counts = dict.fromkeys(CorpusCounts.model_fields, 0)
    counts |= {
        "documents": len(samples),
        "samples": len(samples),
        "tokens": sum(len(s.input_ids) for s in samples),
        "loss_tokens": sum(int(s.loss_mask.sum()) for s in samples),
    }
    return Manifest(
        teacher=TeacherInfo(
            name="synthetic",
            revision=None,
            dtype="float32",
            architecture="SyntheticForCausalLM",
            num_layers=2,
            hidden_size=8,
            vocab_size=vocab_size,
            fingerprint="a" * 64,
        ),
        tokenizer=TokenizerInfo(fingerprint="b" * 64, vocab_size=vocab_size),
        corpus=CorpusInfo(
            fingerprint="c" * 64,
            settings=CorpusConfig(sources=[SourceConfig(path="synthetic.jsonl", format="jsonl")]),
            counts=CorpusCounts(**counts),
        ),
        capture=CaptureConfig(logits=capture),
        codec=codec,
        provenance=Provenance(),
        tokens_per_shard=1 + max(unit.tokens for unit in units),
        units=units,
        complete=False,
        shards=[],
        tables={},
        totals=Totals(samples=0, tokens=0, bytes={}, index_bytes=0),
    )


def file_entry(data: bytes) -> FileEntry:
    """Size and sha256 of ``data``."""
    return FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
