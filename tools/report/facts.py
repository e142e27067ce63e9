"""The manifest as facts for the report."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from schemas.derivation import Derivation
from schemas.manifest import Manifest
from teacher_cache.shards.shard_table import ShardTable
from teacher_cache.shards.storage import Storage
from teacher_cache.signals.side_table import SIDE_SIGNALS
from tools.trust.signatures import Signed

MOST_CHARACTERS = 2000  # of a text from the manifest


class Fact(NamedTuple):
    """A line of the summary."""

    term: str
    value: str
    code: bool = False


def facts(url: str, storage: Storage, manifest: Manifest, signed: Sequence[Signed]) -> list[dict[str, Any]]:
    """The manifest's facts, in titled groups."""
    teacher, counts, capture = manifest.teacher, manifest.corpus.counts, manifest.capture
    logits = capture.logits
    stored = f"top {logits.k}" if logits.policy == "top_k" else f"nucleus of {logits.mass:g}, at most {logits.k}"
    signals = [Fact("logits", f"{stored}; temperatures {', '.join(f'{t:g}' for t in logits.temperatures)}")]
    for name, settings in capture.side_settings.items():
        signals.append(Fact(name, SIDE_SIGNALS[name].in_words(settings, teacher.num_layers)))
    provenance = [
        Fact(term, cut(value) or "not given")
        for term, value in (
            ("licence", manifest.provenance.licence),
            ("owner", manifest.provenance.owner),
            ("notes", manifest.provenance.notes),
        )
    ]
    shards = f"{len(ShardTable(manifest, storage)):,}" + ("" if manifest.complete else "; the run is not finished")
    groups = {
        "Teacher": [
            Fact("name", cut(teacher.name)),
            Fact("architecture", cut(teacher.architecture)),
            Fact("size", f"{teacher.num_layers} layers of {teacher.hidden_size:,}"),
            Fact("vocabulary", f"{teacher.vocab_size:,}"),
            Fact("computed in", cut(teacher.dtype)),
            Fact("revision", cut(teacher.revision or "not given")),
            Fact("weights", teacher.fingerprint, code=True),
            Fact("tokenizer", manifest.tokenizer.fingerprint, code=True),
        ],
        "Corpus": [
            Fact("documents", f"{counts.documents:,}"),
            Fact("samples", f"{counts.samples:,}, at most {manifest.corpus.settings.max_tokens:,} tokens each"),
            Fact("tokens", f"{counts.tokens:,}; {counts.loss_tokens:,} in the loss"),
            Fact(
                "left out", f"{counts.duplicates:,} duplicates, {counts.too_short:,} too short, {counts.empty:,} empty"
            ),
            Fact("content", manifest.corpus.fingerprint, code=True),
        ],
        "Signals": [*signals, Fact("format", f"version {manifest.format_version}"), Fact("shards", shards)],
        "Provenance": [
            *provenance,
            *_derived(manifest.derived),
            Fact("signed", "no") if not signed else Fact("signed", "\n".join(map(_signature, signed))),
            Fact("manifest", manifest.digest(), code=True),
            Fact("read from", cut(url)),
        ],
    }
    return [{"title": title, "facts": facts} for title, facts in groups.items()]


def _signature(signed: Signed) -> str:
    if signed.statement is None:
        return f"invalid signature of key {signed.public_key}: {signed.problem}"
    signer, signed_at = signed.statement.signer, signed.statement.signed_at.isoformat(timespec="seconds")
    return f"by “{signer}” (self-stated name), {signed_at}; valid signature of key {signed.public_key}"


def _derived(derived: Derivation | None) -> list[Fact]:
    if derived is None:
        return []
    sources = [f"{each.manifest_sha256} ({each.samples:,} samples)" for each in derived.sources[:10]]
    more = len(derived.sources) - len(sources)
    facts = [
        Fact("made by", derived.action),
        Fact("made from", "\n".join(sources) + (f"\nand {more} more" if more else "")),
    ]
    if derived.notes:
        facts.append(Fact("how", cut(derived.notes)))
    return facts


def lead(manifest: Manifest) -> str:
    """The first sentence of the page."""
    stored = ["the likeliest next tokens", *(SIDE_SIGNALS[name].title for name in manifest.capture.side_settings)]
    joined = stored[0] if len(stored) == 1 else f"{', '.join(stored[:-1])} and {stored[-1]}"
    return f"What this teacher predicts after each token of a corpus: {joined}."


def cut(text: str) -> str:
    """A text from the manifest, truncated if long."""
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"
