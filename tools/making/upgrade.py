"""``cache-tools upgrade``: a cache of an older format with what students with another tokenizer need (format 1.2).

The vocabulary comes from the teacher's tokenizer, and the messages of chats from their rendered texts (``unrender``). A
chat whose messages cannot be proven gets a record without any, as a piece of a cut chat does: such samples are left out
for students with another tokenizer, which would otherwise be taught the teacher's template. Only ``tokens`` tars with
chats and their indexes are written; of their payloads nothing but the record is new. All other files are linked.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.arrow import TOKENS_SCHEMA
from schemas.cache_config import TeacherConfig
from schemas.derivation import Derivation
from schemas.errors import UserError
from schemas.manifest import Manifest, ShardEntry
from schemas.strict import FORMAT_MINOR, FORMAT_VERSION
from teacher_cache.codec.message import RowReader, is_arrow, write_row
from teacher_cache.codec.tokens import STRINGS, chat_frame, decode_tokens
from teacher_cache.shards.marks import files_beside_shards, mark_name, tar_name, write_manifest, write_mark
from teacher_cache.shards.new_place import check_free, new_cache
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import TarWriter
from teacher_cache.shards.vocabulary_file import write_vocabulary
from teacher_cache.shards.writer import check_tars
from teacher_cache.teacher import load_tokenizer
from teacher_cache.teacher_vocabulary import teacher_vocabulary
from teacher_cache.token_table import Vocabulary
from teacher_cache.tokenizer import describe_tokenization
from tools.making.derived import check_tars_without_digests, derived_manifest, read_payloads, source_of
from tools.making.link import share_file
from tools.making.source import Source, open_complete, read_index
from tools.making.unrender import FAILED, Outcome, Unrenderer
from tools.trust.signatures import signature_names

UPGRADING = "cache-tools upgrade"  # the owner named in the target's lease
_READER = RowReader(TOKENS_SCHEMA)


@dataclass(frozen=True)
class Upgraded:
    """The outcome of an upgrade."""

    format_before: str
    format: str
    shards: int
    shards_rewritten: int  # those with chats
    samples: int
    chats: int
    chats_with_messages: int
    chats_without_messages: dict[str, int]  # by reason
    tokens_of_vocabulary: int
    stop_tokens: list[int]
    signatures_to_renew: int  # the source's, which do not cover the new cache


class _Teacher:
    """The teacher's tokenizer, as the cache's texts were rendered with it."""

    def __init__(self, manifest: Manifest, folder: str, chat_template: Path | None, trust_remote_code: bool) -> None:
        self._manifest, self._folder = manifest, folder
        self._config = TeacherConfig(path=folder, trust_remote_code=trust_remote_code)
        self._tokenizer = load_tokenizer(self._config, key="--tokenizer")
        if not self._tokenizer.is_fast:
            raise UserError(
                f"--tokenizer {folder}: a slow tokenizer without offsets; give a folder with tokenizer.json"
            )
        settings = manifest.corpus.settings
        given = {} if chat_template is None else {"chat_template": str(chat_template)}
        self._corpus = settings.model_copy(update=given)
        self._check_template_is_there(chat_template)
        self._found = describe_tokenization(self._tokenizer, self._corpus)
        if self._found.fingerprint != manifest.tokenizer.fingerprint:
            raise UserError(
                f"--tokenizer {folder}: fingerprint {self._found.fingerprint}, wanted the cache's, "
                f"{manifest.tokenizer.fingerprint}; give the folder of {manifest.teacher.name}"
            )

    def _check_template_is_there(self, given: Path | None) -> None:
        """A cache keeps no more than the name of a template file."""
        name = self._corpus.chat_template
        if given is None and name is not None:
            named = self._tokenizer.chat_template
            if not isinstance(named, dict) or name not in named:
                raise UserError(
                    f"--tokenizer {self._folder}: the cache's chats were rendered with the chat template {name}, which "
                    "is not the tokenizer's; name its file with --chat-template"
                )

    def vocabulary(self) -> Vocabulary:
        """The teacher's vocabulary. Raises UserError if nothing says where the teacher stops."""
        try:
            return teacher_vocabulary(self._config, self._corpus, self._tokenizer)
        except UserError:
            raise UserError(
                f"--tokenizer {self._folder}: neither generation_config.json nor config.json says which tokens end a "
                "text; give the teacher's folder (its weights are not needed)"
            ) from None

    def unrenderer(self) -> Unrenderer:
        """Raises UserError if the chat template is not the one with which the cache's chats were rendered."""
        wanted, found = self._manifest.tokenizer.chat_template, self._found.chat_template
        if wanted is not None and found != wanted:
            raise UserError(
                f"--tokenizer {self._folder}: the sha256 of its chat template is {found}, the cache's chats were "
                f"rendered with {wanted}; give the tokenizer as it was, or that template's file with --chat-template"
            )
        return Unrenderer(self._tokenizer, self._corpus)


class _Chats:
    """The records of a cache's chats."""

    def __init__(self, teacher: _Teacher, manifest: Manifest) -> None:
        self._teacher, self._vocab_size = teacher, manifest.teacher.vocab_size
        self._unrenderer: Unrenderer | None = None
        self.outcomes: Counter[Outcome] = Counter()

    def __call__(self, payload: bytes, num_tokens: int) -> bytes:
        """The JSON of a chat's record; nothing for other samples. Raises CorruptCacheError."""
        sample = decode_tokens(payload, num_tokens, self._vocab_size)
        if sample.loss_mask[:-1].all() or sample.chat:
            self.outcomes[Outcome.PLAIN] += 1
            return b""
        if self._unrenderer is None:
            self._unrenderer = self._teacher.unrenderer()
        record, outcome = self._unrenderer.read(sample)
        self.outcomes[outcome] += 1
        return b"" if record is None else record.to_json()


def upgrade(
    source: str,
    target: str,
    tokenizer: str,
    chat_template: Path | None = None,
    trust_remote_code: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Upgraded:
    """Write the complete cache ``source`` in the present format to ``target``; ``advance(samples done, in all)``.

    tokenizer: the teacher's folder. chat_template: file of the template, where the corpus had one of its own. Raises
    UserError when there is nothing to add or the tokenizer is not the teacher's, CorruptCacheError when one of the
    cache's files is wrong; nothing is then left at ``target``.
    """
    settings = source, tokenizer, chat_template
    check_free(target, UPGRADING, *settings)
    cache = open_complete(source)
    base = cache.manifest
    if base.vocabulary is not None:
        raise UserError(
            f"{source}: it has a vocabulary already (format {_version(base)}), so there is nothing to add; use it as "
            "it is"
        )
    teacher = _Teacher(base, tokenizer, chat_template, trust_remote_code)
    vocabulary, chats = teacher.vocabulary(), _Chats(teacher, base)
    shards: list[ShardEntry] = []
    done = rewritten = 0
    with new_cache(target, UPGRADING, *settings) as storage:
        for name, file in files_beside_shards(base.model_copy(update={"shard_table": None})):
            share_file(cache.storage, name, storage, name, file)
        entry = write_vocabulary(vocabulary, storage)
        for old in base.shards:
            shards.append(_write_shard(cache, old, storage, chats))
            rewritten += shards[-1] != old
            done += old.samples
            advance(done, base.totals.samples)
        failed = {outcome.value: chats.outcomes[outcome] for outcome in FAILED if chats.outcomes[outcome]}
        proven = chats.outcomes[Outcome.PROVEN]
        notes = f"format {_version(base)} → {FORMAT_VERSION}.{FORMAT_MINOR}; chats with their messages: {proven}, " + (
            f"without: {sum(failed.values())}"
        )
        derived = Derivation(action="upgrade", sources=[source_of(base)], notes=notes)
        manifest = derived_manifest(base, shards, derived, rewritten=True, vocabulary=entry)
        write_manifest(storage, manifest)
    return Upgraded(
        format_before=_version(base),
        format=_version(manifest),
        shards=len(shards),
        shards_rewritten=rewritten,
        samples=manifest.totals.samples,
        chats=proven + sum(failed.values()),
        chats_with_messages=proven,
        chats_without_messages=failed,
        tokens_of_vocabulary=len(vocabulary.is_stop_V),
        stop_tokens=[int(i) for i in vocabulary.is_stop_V.nonzero()[0]],
        signatures_to_renew=len(signature_names(cache.storage)),
    )


def _write_shard(cache: Source, entry: ShardEntry, target: Storage, chats: _Chats) -> ShardEntry:
    """Link a shard's tars; where it has chats, write that of the tokens, then the index."""
    source, index = cache.storage, read_index(cache, entry)
    check_tars_without_digests(source, index, ["tokens"])
    rows = range(len(index.keys))
    payloads = zip(index.num_tokens, read_payloads(source, index, "tokens", rows), strict=True)
    records = [chats(payload, num_tokens) for num_tokens, payload in payloads]
    for signal, member in index.signals.items():
        if signal != "tokens" or not any(records):
            name = tar_name(entry.name, signal)
            share_file(source, name, target, name, member.file)
    if not any(records):
        share_file(source, mark_name(entry.name), target, mark_name(entry.name), entry.index)
        return entry
    tokens = index.signals["tokens"]
    bundles = None if tokens.bundles is None else tokens.bundles.samples
    with target.staged(tar_name(entry.name, "tokens")) as path, TarWriter(path, "tokens", bundles) as tar:
        old = read_payloads(source, index, "tokens", rows)
        for key, payload, record in zip(index.keys, old, records, strict=True):
            tar.add(key, with_chat(payload, record))
    written = {"tokens": tar.index()}
    check_tars(target, index.model_copy(update={"signals": written}))
    return write_mark(target, index.model_copy(update={"signals": index.signals | written}))


def with_chat(payload: bytes, record: bytes) -> bytes:
    """A payload or record of ``tokens`` with the record of its chat; all else as it is."""
    if not record:
        return payload
    if not is_arrow(payload):
        return payload + chat_frame(record)
    row = _READER.read(payload)
    columns: dict[str, Any] = {name: row.text(name) for name in STRINGS}
    columns["frame"] = bytes(row.binary("frame"))
    columns["text_frame"] = bytes(row.binary("text_frame")) + chat_frame(record)
    return write_row(TOKENS_SCHEMA, columns)


def _version(manifest: Manifest) -> str:
    return f"{manifest.format_version}.{manifest.format_minor}"
