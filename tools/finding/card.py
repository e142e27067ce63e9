"""``cache-tools card``: a Markdown card of a cache, like a model card, generated from the cache's files alone.

Free text from the manifest (names, notes, licence) is shown as code, so that Markdown and HTML in it have no effect.
"""

from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit, urlunsplit

from schemas.derivation import Derivation
from schemas.manifest import Manifest
from schemas.signature import Statement
from teacher_cache.shards.lease import whole_place
from teacher_cache.shards.marks import up_to_date_manifest
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import Storage
from teacher_cache.text import code_block, code_span, front_matter, one_line
from tools.finding.words import capture_in_words, pull_command, total_bytes
from tools.looking.stats import Stats, stats
from tools.trust.signatures import valid_signatures

CARD = "CACHE_CARD.md"
MAX_SOURCES = 50  # data sources, source caches and signatures that are listed
MAX_GENERATIONS = 6


def describe(url: str, samples: int = 0, advance: Callable[[int, int], None] = lambda done, total: None) -> str:
    """The card of the cache at ``url``; with ``samples`` > 0, quality figures measured on that many samples.

    Raises UserError when there is no cache at ``url``, CorruptCacheError when a sample is damaged.
    """
    storage = Storage(url)
    manifest = with_lists(storage, up_to_date_manifest(storage))
    quality = _figures(stats(url, samples, advance)) if samples and manifest.totals.samples else None
    return cache_card(manifest, url, valid_signatures(storage, manifest), quality)


def _figures(found: Stats) -> dict[str, float]:
    """The card's quality figures from ``cache-tools stats``: means over the rows read."""
    figures = found.overall.summary()
    entropy = "entropy in nats" if found.entropy_is_exact else "entropy in nats, at least"
    return {
        "samples read": figures["samples"],
        "rows read": figures["rows"],
        entropy: figures["entropy"]["mean"],
        "probability of the best token": figures["top1_mass"]["mean"],
        "probability of a row's stored tokens": figures["coverage"]["mean"],
        "perplexity of the text to the teacher": figures["perplexity"],
    }


def write_card(url: str, text: str) -> str:
    """Write the card into the cache, where readers ignore it. Returns its location."""
    with whole_place(Storage(url), "cache-tools card") as lease:
        lease.storage.write(CARD, text.encode())
        return lease.storage.where(CARD)


def cache_card(
    manifest: Manifest,
    url: str,
    signatures: Sequence[tuple[str, Statement]] = (),
    quality: Mapping[str, float] | None = None,
) -> str:
    """The text of ``CACHE_CARD.md``.

    manifest: with its list of shards; signatures: public key and statement of each valid one; quality: figures
    measured on the cache, by name.
    """
    lines = [
        *_header(manifest),
        f"# Teacher cache of {code_span(manifest.teacher.name)}",
        "",
        "Per-token signals of a teacher language model over a corpus, for training students without the teacher.",
        "",
        *_identity(manifest),
        *_teacher(manifest),
        *_data(manifest),
        *_signals(manifest),
        *(_quality(quality) if quality else []),
        *_use(manifest, url),
        *_provenance(manifest, signatures),
        *_limits(manifest),
    ]
    return "\n".join(lines)


def _header(manifest: Manifest) -> list[str]:
    licence = {"license": manifest.provenance.licence} if manifest.provenance.licence.strip() else {}
    values = {
        **licence,
        "tags": ["distillation", "teacher-cache", *manifest.capture.signals],
        "teacher": manifest.teacher.name,
        "tokenizer_fingerprint": manifest.tokenizer.fingerprint,
        "cache_format_version": manifest.format_version,
        **({"manifest_sha256": manifest.digest()} if manifest.complete else {}),
        "samples": manifest.totals.samples,
        "tokens": manifest.totals.tokens,
        "bytes": total_bytes(manifest),
    }
    return front_matter(values)


def _identity(manifest: Manifest) -> list[str]:
    if manifest.complete:
        return [f"- manifest digest: `{manifest.digest()}`", f"- format version: {manifest.format_version}", ""]
    return [
        f"- **not complete**: {len(manifest.shards)} of {len(manifest.units)} shards; the digest will change",
        f"- format version: {manifest.format_version}",
        "",
    ]


def _teacher(manifest: Manifest) -> list[str]:
    teacher, tokenizer = manifest.teacher, manifest.tokenizer
    revision = f", revision {code_span(teacher.revision)}" if teacher.revision else ""
    return [
        "## Teacher",
        "",
        f"- model: {code_span(teacher.name)}{revision}",
        f"- architecture: {code_span(teacher.architecture)}, {teacher.num_layers} layers of {teacher.hidden_size} "
        f"channels, computed in {code_span(teacher.dtype)}",
        f"- fingerprint of configuration and weights: `{teacher.fingerprint}`",
        f"- tokenizer: {tokenizer.vocab_size} tokens, fingerprint `{tokenizer.fingerprint}`",
        "",
    ]


def _data(manifest: Manifest) -> list[str]:
    settings, counts = manifest.corpus.settings, manifest.corpus.counts
    totals = manifest.totals
    sources = [
        f"- {code_span(source.path)}, {source.format}, layer {code_span(source.layer)}"
        + (f", at most {source.limit} documents" if source.limit else "")
        for source in settings.sources[:MAX_SOURCES]
    ]
    if len(settings.sources) > MAX_SOURCES:
        sources.append(f"- and {len(settings.sources) - MAX_SOURCES} more")
    outcomes = {
        "read": counts.documents,
        "empty, dropped": counts.empty,
        "equal to an earlier one, dropped": counts.duplicates,
        "too short, dropped": counts.too_short,
        "too long, split": counts.split,
        "too long, truncated": counts.truncated,
        "too long, dropped": counts.dropped_over_long,
    }
    return [
        "## Data",
        "",
        f"{totals.samples:,} samples, {totals.tokens:,} tokens, in sequences of {settings.min_tokens} to "
        f"{settings.max_tokens} tokens. The corpus has {counts.samples:,} samples with {counts.tokens:,} tokens, of "
        f"which {counts.loss_tokens:,} are in the loss. Sources:",
        "",
        *sources,
        "",
        "| documents | number |",
        "|---|--:|",
        *(f"| {what} | {count:,} |" for what, count in outcomes.items()),
        "",
        f"Text was {'cleaned' if settings.clean else 'not changed'}. Fingerprint of the corpus: "
        f"`{manifest.corpus.fingerprint}`",
        "",
    ]


def _signals(manifest: Manifest) -> list[str]:
    words, per_token, codec = capture_in_words(manifest), manifest.bytes_per_token(), manifest.codec
    words |= {"index": "offsets and checksums", "tables": "code tables of token ids", "head": "output head, once"}
    sizes = manifest.sizes().items()
    rows = [f"| {name} | {words.get(name, '')} | {count:,} | {per_token[name]:.2f} |" for name, count in sizes]
    logprobs = f"as {codec.logprobs}"
    if codec.logprobs == "steps":
        logprobs = f"in steps of 1/{codec.logprob_steps_per_nat} nat, finer near 0"
    return [
        "## Signals",
        "",
        "| files | stored | bytes | bytes per token |",
        "|---|---|--:|--:|",
        *rows,
        "",
        f"Log-probabilities are stored {logprobs}, log-partitions in steps of 1/{codec.scalar_steps_per_nat} nat; "
        f"everything is compressed with zstd at level {codec.zstd_level}. Total: {total_bytes(manifest):,} bytes.",
        "",
    ]


def _quality(quality: Mapping[str, float]) -> list[str]:
    rows = [f"| {code_span(name).replace('|', '')} | {value:.6g} |" for name, value in quality.items()]
    return ["## Quality", "", "| measure | value |", "|---|--:|", *rows, ""]


def _use(manifest: Manifest, url: str) -> list[str]:
    pull = pull_command(shown_url(url), manifest.digest() if manifest.complete else None)
    return [
        "## Use",
        "",
        *code_block(
            f"{pull}\ncache-tools verify FOLDER\ntrain-student run CONFIG --set data.cache=FOLDER",
            language="sh",
        ),
        "",
        f"The student's tokenizer must have the fingerprint `{manifest.tokenizer.fingerprint}`.",
        "",
    ]


def _provenance(manifest: Manifest, signatures: Sequence[tuple[str, Statement]]) -> list[str]:
    provenance = manifest.provenance
    stated = {"licence": provenance.licence, "owner": provenance.owner}
    lines = ["## Provenance", ""]
    lines += [f"- {name}: {code_span(text) if text.strip() else 'not stated'}" for name, text in stated.items()]
    for public_key, statement in signatures[:MAX_SOURCES]:
        lines.append(
            f"- signed on {statement.signed_at:%Y-%m-%d} with the key `{public_key}`; self-stated name "
            f"{code_span(statement.signer)}"
        )
    lines += ["- not signed"] if not signatures else []
    if manifest.derived is not None:
        lines += ["", "Derived from other caches:", "", *_history(manifest.derived)]
    if provenance.notes.strip():
        lines += ["", "Notes:", "", *code_block(provenance.notes)]
    return [*lines, ""]


def _history(derived: Derivation, generation: int = 0) -> list[str]:
    indent = "  " * generation
    more = [f", {derived.duplicates_dropped} duplicates dropped"] if derived.duplicates_dropped else []
    more += [f": {code_span(derived.notes)}"] if derived.notes.strip() else []
    if derived.selection is not None:
        more.append(f"; selection {code_span(derived.selection.model_dump_json(exclude_none=True))}")
    lines = [f"{indent}- {derived.action}{''.join(more)}, from"]
    for source in derived.sources[:MAX_SOURCES]:
        lines.append(f"{indent}  - `{source.manifest_sha256}`: {source.samples:,} samples, {source.tokens:,} tokens")
        if source.derived is not None and generation < MAX_GENERATIONS:
            lines += _history(source.derived, generation + 2)
    if len(derived.sources) > MAX_SOURCES:
        lines.append(f"{indent}  - and {len(derived.sources) - MAX_SOURCES} more")
    return lines


def _limits(manifest: Manifest) -> list[str]:
    logits, final = manifest.capture.logits, manifest.capture.final
    others = (
        "every logit can be rebuilt from the final hidden states" if final else "all other tokens are one remainder"
    )
    rows = "rows in the loss mask" if logits.positions == "loss_mask" else "all rows"
    lines = [
        "## Limits",
        "",
        f"- Distributions are stored at {rows}, {capture_in_words(manifest)['logits'].split(';')[0]}; {others}.",
        "- Values are rounded as stated above, and computed in the teacher engine's arithmetic.",
        "- The cache contains the text of its corpus: licence and flaws of the corpus and of the teacher apply.",
    ]
    if not manifest.complete:
        lines.append("- Shards are missing: the run that writes them is still in progress or was interrupted.")
    return [*lines, ""]


def shown_url(url: str) -> str:
    """A URL to publish: without user, password and query; a placeholder for a local folder."""
    parts = urlsplit(url)
    if "://" not in url or parts.scheme in ("file", "local"):
        return "URL_OF_THIS_CACHE"
    return one_line(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")), 500)
