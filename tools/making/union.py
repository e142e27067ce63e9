"""The manifest of a union of caches, and the check that caches are compatible."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from schemas.cache_config import CorpusConfig, Provenance
from schemas.derivation import Derivation
from schemas.difference import differences
from schemas.errors import UserError
from schemas.manifest import CorpusCounts, CorpusInfo, FileEntry, Manifest, ShardEntry
from tools.making.derived import derived_manifest, source_of

SAME: dict[str, Any] = {
    "teacher": True,
    "tokenizer": {"fingerprint", "vocab_size"},
    "capture": True,
    "codec": True,
    "head": True,
}
MAY_DIFFER = {"teacher.name", "teacher.revision"}  # the fingerprint identifies the weights


def check_fits(first: Manifest, first_url: str, other: Manifest, other_url: str) -> None:
    """Raise UserError, naming the differing settings, unless two caches are compatible."""
    before, now = first.model_dump(include=SAME), other.model_dump(include=SAME)
    found = [each for key in SAME for each in differences(key, before[key], now[key]) if each[0] not in MAY_DIFFER]
    if found:
        named = "; ".join(f"{key}: {old!r} in {first_url}, {new!r} in {other_url}" for key, old, new in found)
        raise UserError(
            f"these caches cannot be merged: {named}; `cache-tools repack` can align k and precision, caches that "
            "differ otherwise must stay separate (a trainer takes several)"
        )


def union_manifest(
    sources: Sequence[Manifest], shards: Sequence[ShardEntry], tables: Mapping[str, FileEntry], dropped: int
) -> Manifest:
    """The manifest of the union of ``sources``, with ``shards``, from which ``dropped`` duplicates were left out."""
    derived = Derivation(action="merge", sources=list(map(source_of, sources)), duplicates_dropped=dropped)
    return derived_manifest(
        sources[0],
        shards,
        derived,
        rewritten=dropped > 0,
        format_minor=max(source.format_minor for source in sources),
        corpus=join_corpora([source.corpus for source in sources]),
        provenance=join_provenance([source.provenance for source in sources]),
        tokens_per_shard=max(source.tokens_per_shard for source in sources),
        tables=dict(tables),
        vocabulary=common_vocabulary(sources),
    )


def common_vocabulary(sources: Sequence[Manifest]) -> FileEntry | None:
    """The vocabulary of the union: none unless all sources have it.

    Chats of older sources have no record, and would be taken for plain texts beside one.
    """
    return sources[0].vocabulary if all(source.vocabulary is not None for source in sources) else None


def join_corpora(corpora: Sequence[CorpusInfo]) -> CorpusInfo:
    """Join corpora into one; equal ones count once, as one corpus of which several caches hold parts.

    Sources are concatenated and counts summed. `max_tokens` is the largest, `min_tokens` the smallest; `clean` and
    `deduplicate` hold if they do for all; other settings are the first corpus's.
    """
    distinct = list({corpus.model_dump_json(): corpus for corpus in corpora}.values())
    if len(distinct) == 1:
        return distinct[0]
    settings = [corpus.settings for corpus in distinct]
    joined = settings[0].model_copy(
        update={
            "sources": [source for each in settings for source in each.sources],
            "max_tokens": max(each.max_tokens for each in settings),
            "min_tokens": min(each.min_tokens for each in settings),
            "clean": all(each.clean for each in settings),
            "deduplicate": all(each.deduplicate for each in settings),
        }
    )
    counts = {name: sum(getattr(corpus.counts, name) for corpus in distinct) for name in CorpusCounts.model_fields}
    fingerprints = "\n".join(corpus.fingerprint for corpus in distinct)
    return CorpusInfo(
        fingerprint=hashlib.sha256(fingerprints.encode()).hexdigest(),
        settings=CorpusConfig.model_validate(joined.model_dump()),
        counts=CorpusCounts(**counts),
    )


def join_provenance(sources: Sequence[Provenance]) -> Provenance:
    """Distinct values of each field, joined; fields that only some sources state also say "not stated"."""
    return Provenance(
        **{name: _joined(getattr(source, name) for source in sources) for name in Provenance.model_fields}
    )


def _joined(texts: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(texts))
    return "; ".join(text or "not stated" for text in distinct) if any(distinct) else ""
