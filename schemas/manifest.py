"""The manifest of a cache and the commit mark of a shard: what the team that writes promises to those that read.

``manifest.json`` is written when the plan is complete (``complete: false``, no shards) and again whenever shards
were committed. ``shard-000123.json`` is written last of a shard's files: its presence means that the shard is whole.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from schemas.cache_config import CaptureConfig, CodecConfig, CorpusConfig, Provenance
from schemas.derivation import Derivation
from schemas.digests import DIGEST_BYTES, Base64
from schemas.signal_names import Signal
from schemas.strict import FORMAT_VERSION, Extended, Sha256, Strict, added

Xxh3 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
ShardName = Annotated[str, Field(pattern=r"^shard-[0-9]{6,9}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
MAX_SEQUENCE_TOKENS = 2**24
MAX_SHARD_SAMPLES = 2**24
MAX_SAMPLE_BYTES = 5 << 28  # of one sequence's logits and draws in memory: 65,535 entries for each of 2,048 tokens
MAX_LISTED_UNITS = 4096  # in the manifest itself; of larger caches a file of its own lists them


class TeacherInfo(Strict):
    """The model whose signals the cache holds; ``fingerprint`` covers its configuration and weights."""

    name: str
    revision: str | None
    dtype: str
    architecture: str
    num_layers: Count
    hidden_size: Count
    vocab_size: Annotated[int, Field(ge=2, lt=2**24)]
    fingerprint: Sha256


class TokenizerInfo(Extended):
    """The tokenizer; two caches (or a cache and a student) agree on token ids when the fingerprints are equal.

    What was added later says how texts became tokens; caches of the first version lack it.
    """

    fingerprint: Sha256
    vocab_size: Annotated[int, Field(ge=2, lt=2**24)]
    files: dict[str, Sha256] = added({}, "sha256 of each file that says how texts become tokens, by name.")
    chat_template: Sha256 | None = added(None, "sha256 of the chat template in effect, as JSON.")


class CorpusCounts(Extended):
    """What became of the documents that were read.

    Every document gives samples or is in one of the counts of what gave none; `split` and `truncated` say what was
    cut on the way, and pieces of a document can be duplicates or too short as well.
    """

    documents: Count
    empty: Count
    duplicates: Count
    too_short: Count
    split: Count
    truncated: Count
    dropped_over_long: Count
    samples: Count
    tokens: Count
    loss_tokens: Count
    no_reply: Count = added(0, "Chats without a message that is to be learned.")
    malformed: Count = added(0, "Dropped: records that are not what their format asks for.")
    refused: Count = added(0, "Dropped: chats that the chat template refuses.")
    reply_lost: Count = added(0, "Dropped: chats of which the chat template leaves out a whole reply.")
    not_located: Count = added(0, "Dropped: chats in whose text a reply cannot be told from other messages.")
    rejected: Count = added(0, "Generated replies with a reject reason (truncated, repetitive, …).")
    cut_replies: Count = added(0, "Replies of which the chat template leaves something out (reasoning, for example).")


class CorpusInfo(Strict):
    """The data: its settings (paths cut to their last part), a fingerprint of every byte, and what became of it."""

    fingerprint: Sha256
    settings: CorpusConfig
    counts: CorpusCounts


class FileEntry(Strict):
    """One file of the cache: its size in bytes and the sha256 of its content."""

    bytes: Count
    sha256: Sha256


class HeadInfo(Strict):
    """The teacher's output head, stored once: logits = cap(scale · (final hidden state · weightᵀ + bias)).

    cap(x) = softcap · tanh(x / softcap), or x where `softcap` is null. The file holds the tensor `weight` [V, D] and
    perhaps `bias` [V].
    """

    file: FileEntry
    scale: Annotated[float, Field(gt=0)]
    softcap: Annotated[float, Field(gt=0)] | None


class Unit(Strict):
    """One planned unit of work: the shard ``name`` it becomes and the file with its sequences, written by the plan."""

    name: ShardName
    samples: Annotated[int, Field(ge=1, le=MAX_SHARD_SAMPLES)]
    tokens: Count
    tokens_file: FileEntry


class ShardEntry(Strict):
    """A committed shard as the manifest lists it."""

    name: ShardName
    samples: Annotated[int, Field(ge=1, le=MAX_SHARD_SAMPLES)]
    tokens: Count
    index: FileEntry
    files: dict[Signal, FileEntry]


class Totals(Strict):
    """Sums over the committed shards; ``bytes`` counts every file of each signal, ``index_bytes`` the commit marks."""

    samples: Count
    tokens: Count
    bytes: dict[Signal, Count]
    index_bytes: Count

    def bytes_per_token(self) -> dict[str, float]:
        """By signal, and ``index``; 0 where there is no token."""
        sizes = [*self.bytes.items(), ("index", self.index_bytes)]
        return {name: size / max(1, self.tokens) for name, size in sizes}


class Manifest(Extended):
    """``manifest.json``: everything that is needed to decode, check and trust a cache."""

    format_version: Annotated[int, Field(ge=1)] = FORMAT_VERSION
    format_minor: int = added(
        0, "Minor version that a reader must know: 1 where shards have bundles or digests, 2 with a vocabulary.", ge=0
    )
    teacher: TeacherInfo
    tokenizer: TokenizerInfo
    corpus: CorpusInfo
    capture: CaptureConfig
    codec: CodecConfig
    provenance: Provenance
    head: HeadInfo | None = Field(None, description="The teacher's output head; there if `capture.final` is set.")
    vocabulary: FileEntry | None = added(
        None, "The file `vocabulary.arrow`: the bytes of the teacher's tokens, for students with another tokenizer."
    )
    tokens_per_shard: Annotated[int, Field(ge=1)]
    units: list[Unit]
    complete: bool
    shards: list[ShardEntry]
    shard_table: FileEntry | None = Field(
        None,
        description="The file `tables/{sha256}.arrow` that lists units and shards in place of `units` and `shards`, "
        f"which are empty in the file then: of caches of more than {MAX_LISTED_UNITS} units.",
    )
    derived: Derivation | None = Field(
        None, description="Of a cache made of others: how. `corpus` is then what was read for them."
    )
    tables: dict[Sha256, FileEntry] = Field(description="Codec tables (id permutations), by digest.")
    totals: Totals
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        "",
        description="The cache's digest: sha256 of this file's text with this field empty. Nothing else protects the "
        "manifest.",
    )

    @model_validator(mode="after")
    def _rows_fit_the_vocabulary(self) -> "Manifest":
        if self.capture.logits.k > self.teacher.vocab_size:
            raise ValueError(
                f"capture.logits.k is {self.capture.logits.k}, above the vocabulary of {self.teacher.vocab_size}"
            )
        return self

    @model_validator(mode="after")
    def _shards_are_units(self) -> "Manifest":
        check_rising([unit.name for unit in self.units], "units")
        check_rising([entry.name for entry in self.shards], "shards")
        units = {unit.name: unit for unit in self.units}
        for entry in self.shards:
            unit = units.get(entry.name)
            if unit is None:
                raise ValueError(f"shards: {entry.name} is none of the planned units")
            wanted = (unit.samples, unit.tokens, unit.tokens_file)
            if (entry.samples, entry.tokens, entry.files.get("tokens")) != wanted:
                raise ValueError(f"shards: {entry.name} has other samples, tokens or tokens file than its unit")
            missing = [signal for signal in self.capture.signals if signal not in entry.files]
            if missing:
                raise ValueError(f"shards: {entry.name} has no file of {', '.join(missing)}, which capture lists")
        if self.complete and len(self.shards) < len(self.units):
            raise ValueError(f"complete is true, but {len(self.shards)} of {len(self.units)} units are committed")
        return self

    def sizes(self) -> dict[str, int]:
        """Bytes of the listed files: by signal, then ``index``, ``tables`` and, where there are such, ``head`` and
        ``vocabulary``."""
        tables = [*self.tables.values(), *([] if self.shard_table is None else [self.shard_table])]
        sizes: dict[str, int] = {signal: size for signal, size in self.totals.bytes.items()}
        sizes |= {"index": self.totals.index_bytes, "tables": sum(file.bytes for file in tables)}
        beside = {"head": None if self.head is None else self.head.file, "vocabulary": self.vocabulary}
        return sizes | {name: file.bytes for name, file in beside.items() if file is not None}

    def bytes_per_token(self) -> dict[str, float]:
        """``sizes`` by the tokens of the committed shards; of an empty cache, by 1."""
        return {name: size / max(1, self.totals.tokens) for name, size in self.sizes().items()}

    def to_json(self) -> str:
        """The file's text, with its sha256: indented JSON and a final newline; equal manifests give equal bytes."""
        return self._text(self._text_sha256())

    def digest(self) -> str:
        """The one digest of a cache in this state, for checkpoints, cards, signatures and `--digest`: hex.

        The ``sha256`` of the file that the manifest was read from; of one that is not written yet, what it will be.
        """
        return self.sha256 or self._text_sha256()

    def sealed(self) -> "Manifest":
        """The same with the ``sha256`` of its present content."""
        return self.model_copy(update={"sha256": self._text_sha256()})

    def _text_sha256(self) -> str:
        return hashlib.sha256(self._text("").encode()).hexdigest()

    def _text(self, sha256: str) -> str:
        in_table = self.shard_table is not None
        lists: dict[str, list[object]] = {"units": [], "shards": []} if in_table else {}
        left_out = {name for name in ("shard_table", "derived") if getattr(self, name) is None}
        return self.model_copy(update={"sha256": sha256, **lists}).model_dump_json(indent=1, exclude=left_out) + "\n"


class Bundles(Strict):
    """Tar members that hold several samples each: how many, and offset and size of the member's content in bytes."""

    samples: list[Annotated[int, Field(ge=1, le=MAX_SHARD_SAMPLES)]]
    offsets: list[Count]
    sizes: list[Count]


class MemberIndex(Extended):
    """Where the samples lie in one signal's tar: payload offset and size in bytes, xxh3-64 and sha256 of the payload.

    A payload is a member's content or, with `bundles`, a sample's record inside of one. xxh3 finds accidents;
    `digests` also binds the payload to the index, and so to the manifest and to who signed it.
    """

    file: FileEntry
    offsets: list[Count]
    sizes: list[Count]
    checksums: list[Xxh3]
    bundles: Bundles | None = added(None, "Format 1.1: the members, where they hold several samples.")
    digests: Base64 | None = added(
        None, f"Format 1.1: the first {DIGEST_BYTES} bytes of each payload's sha256, one after the other, in base64."
    )

    @property
    def format_minor(self) -> int:
        """The minor version of the format that a reader of the tar must know."""
        return 0 if self.bundles is None and self.digests is None else 1

    def digest(self, row: int) -> bytes:
        """The beginning of the sha256 of a sample's payload; b"" where the index has none."""
        return b"" if self.digests is None else self.digests[DIGEST_BYTES * row : DIGEST_BYTES * (row + 1)]


class ShardIndex(Strict):
    """``shard-000123.json``: the index of a shard and the mark that it is committed.

    All lists are parallel, one entry per sample, in the order of the tar members ``{key}.{signal}.arrow``.
    """

    format_version: Annotated[int, Field(ge=1)] = FORMAT_VERSION
    name: ShardName
    keys: list[Annotated[str, Field(pattern=r"^[0-9a-z]{1,64}$")]] = Field(max_length=MAX_SHARD_SAMPLES)
    num_tokens: list[Annotated[int, Field(ge=1, le=MAX_SEQUENCE_TOKENS)]]
    layers: list[str] | None = Field(None, description="Layer of the data mix of each sample; older caches lack it.")
    table: Sha256 = Field(description="Digest of the id permutation that the logits of this shard are coded with.")
    signals: dict[Signal, MemberIndex]

    @model_validator(mode="after")
    def _lists_are_parallel(self) -> "ShardIndex":
        n = len(self.keys)
        lengths = {"num_tokens": len(self.num_tokens)}
        if self.layers is not None:
            lengths["layers"] = len(self.layers)
        for signal, member in self.signals.items():
            for field in ("offsets", "sizes", "checksums"):
                lengths[f"signals.{signal}.{field}"] = len(getattr(member, field))
            if member.bundles is not None:
                lengths[f"signals.{signal}.bundles"] = _samples_in(member.bundles)
            if member.digests is not None:
                whole, rest = divmod(len(member.digests), DIGEST_BYTES)
                lengths[f"signals.{signal}.digests"] = -1 if rest else whole
        wrong = {name: length for name, length in lengths.items() if length != n}
        if wrong:
            raise ValueError(f"lists must have one entry per key ({n}), got {wrong}")
        if len(set(self.keys)) != n:
            raise ValueError("keys must be distinct")
        return self


def _samples_in(bundles: Bundles) -> int:
    """Samples of all bundles; -1 where the lists do not fit together."""
    fit = len(bundles.samples) == len(bundles.offsets) == len(bundles.sizes)
    return sum(bundles.samples) if fit else -1


def check_rising(names: Sequence[str], what: str) -> None:
    """Raise ValueError unless the numbers of these shards rise, so that none is there twice."""
    for one, other in itertools.pairwise(names):
        if shard_number(one) >= shard_number(other):
            raise ValueError(f"{what}: names must rise, and {other} follows {one}")


def shard_number(name: str) -> int:
    """123 of ``shard-000123``."""
    return int(name.removeprefix("shard-"))
