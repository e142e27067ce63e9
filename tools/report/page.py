"""The page: what is measured and known of a cache, put into the template; style, script and data are inside.

Nothing of a cache becomes markup: the template escapes all text, and the data of the samples is JSON that the script
puts in as text. A content security policy allows this style and this script by their hashes and nothing else: no
request at all.
"""

import base64
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from schemas.derivation import Derivation
from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.shards.marks import up_to_date_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.table import ShardTable
from tools.looking.figures import exact_column, measure, perplexity
from tools.looking.sampling import choose, choose_samples, find_samples, read_each
from tools.looking.stats import POSITION_BINS, Figures, Stats
from tools.report import plots
from tools.report.samples import viewer_sample
from tools.report.spelling import Spelling, load_tokenizer
from tools.trust.signatures import Signed, signatures

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000  # of the file
MOST_DATA_BYTES = 4_500_000  # of the samples in it
MEASURED_SAMPLES = 500  # whose figures are shown
SHOWN_GROUPS = 20
MOST_CHARACTERS = 2000  # of a text of the manifest
STEPS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)  # nats, at which the colour changes
_DANGEROUS = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


class Fact(NamedTuple):
    """A line of the summary."""

    term: str
    value: str
    code: bool = False


class Report(NamedTuple):
    """What was written."""

    path: str
    bytes: int
    samples: list[str]
    left_out: int


def report(
    url: str,
    out: Path,
    samples: int = 12,
    keys: Sequence[str] = (),
    tokenizer: str | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Write the page of the cache at ``url`` to ``out``.

    ``samples``: how many are shown token by token, chosen over all layers, after those of ``keys``. ``tokenizer``: the
    teacher's folder, to spell tokens that the texts do not show. Raises UserError when there is no such cache or
    sample, or the file cannot be written, CorruptCacheError when a file of the cache is damaged.
    """
    storage = Storage(url)
    manifest = up_to_date_manifest(storage)
    reader = CacheReader(url, ("tokens", *manifest.capture.signals), manifest)
    wanted = find_samples(reader, keys)
    speller = None if tokenizer is None else load_tokenizer(tokenizer, manifest.tokenizer)
    spelling = Spelling(manifest.teacher.vocab_size, speller)
    stats, by_layer = _measure(reader, spelling, advance)
    shown = list(dict.fromkeys([*wanted, *spread(by_layer, samples)]))
    found, left_out = _viewer_samples(reader, shown, spelling)
    data = {"samples": found, "steps": STEPS, "exact": stats.entropy_is_exact}
    page = _render(url, storage, stats, signatures(storage, manifest), data, left_out)
    if len(page) > MOST_BYTES:
        raise UserError(
            f"{url}: its report would take {len(page):,} bytes, more than {MOST_BYTES:,}; use fewer --samples"
        )
    _write(out, page)
    return Report(str(out), len(page), [sample["key"] for sample in found], left_out)


def _measure(
    reader: CacheReader, spelling: Spelling, advance: Callable[[int, int], None]
) -> tuple[Stats, dict[str, list[int]]]:
    """Figures of a part of the samples, and which samples were read, by layer."""
    exact = exact_column(reader.manifest)
    stats = Stats(reader.manifest, len(reader), exact is not None)
    chosen = choose_samples(reader, MEASURED_SAMPLES).tolist()
    by_layer: dict[str, list[int]] = {}
    measured = read_each(chosen, lambda position: measure(reader, position, exact), advance)
    for position, sample in zip(chosen, measured, strict=True):
        stats.add(sample)
        spelling.add(sample.tokens)
        by_layer.setdefault(sample.tokens.layer, []).append(position)
    return stats, by_layer


def spread(by_layer: dict[str, list[int]], wanted: int) -> list[int]:
    """``wanted`` of the samples, as many of each layer as there are, or one more; a layer's are spread over it."""
    quotas = dict.fromkeys(sorted(by_layer), 0)
    while sum(quotas.values()) < min(wanted, sum(map(len, by_layer.values()))):
        open_layers = [layer for layer in quotas if quotas[layer] < len(by_layer[layer])]
        quotas[min(open_layers, key=lambda layer: quotas[layer])] += 1
    return [by_layer[layer][i] for layer, quota in quotas.items() if quota for i in choose(len(by_layer[layer]), quota)]


def _viewer_samples(reader: CacheReader, shown: Sequence[int], spelling: Spelling) -> tuple[list[dict[str, Any]], int]:
    """As many samples as fit, and how many do not."""
    found: list[dict[str, Any]] = []
    size = 0
    for number, position in enumerate(shown):
        sample = viewer_sample(reader, position, spelling)
        size += len(_json(sample).encode())
        if size > MOST_DATA_BYTES:
            return found, len(shown) - number
        found.append(sample)
    return found, 0


def _json(value: Any) -> str:
    """JSON that can stand in a script element: it holds nothing that ends the element or begins a comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_DANGEROUS)


def _render(
    url: str, storage: Storage, stats: Stats, signed: Sequence[Signed], data: dict[str, Any], left_out: int
) -> bytes:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (HERE / "page.css").read_text("utf-8"), (HERE / "page.js").read_text("utf-8")
    manifest = stats.manifest
    text = environment.get_template("page.html.jinja").render(
        policy=Markup(
            f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=Markup(style),
        script=Markup(script),
        data=Markup(_json(data)),
        title=_cut(manifest.teacher.name),
        lead=_lead(manifest),
        key_figures=_key_figures(stats),
        facts=_facts(url, storage, manifest, signed),
        reading=_reading(stats),
        figures=_figures(stats),
        groups=_groups(stats),
        more_sources=max(0, len(stats.sources.by_name) - SHOWN_GROUPS),
        legend=["0", *(f"{step:g}" for step in STEPS[:-1]), f"{STEPS[-1]:g}+ nats"],
        left_out=left_out,
        footer=f"Written by cache-tools report from the cache whose manifest is {manifest.digest()}.",
    )
    return text.encode("utf-8", "replace")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"


def _lead(manifest: Manifest) -> str:
    signals = {
        "draws": "draws",
        "final": "final hidden states",
        "hidden": "hidden states",
        "attention": "attention rows",
    }
    stored = ["the likeliest next tokens", *(signals[name] for name in manifest.capture.signals if name in signals)]
    listed = stored[0] if len(stored) == 1 else f"{', '.join(stored[:-1])} and {stored[-1]}"
    return f"What this teacher expects after each token of a corpus: {listed}."


def _key_figures(stats: Stats) -> list[dict[str, str]]:
    totals, overall = stats.manifest.totals, stats.overall
    size = sum(totals.bytes.values()) + totals.index_bytes
    about = "mean entropy, nats" if stats.entropy_is_exact else "mean entropy, nats, at least"
    pairs = [
        (f"{totals.samples:,}", "samples"),
        (f"{totals.tokens:,}", "tokens"),
        (_size(size), "stored"),
        (f"{size / max(1, totals.tokens):,.0f}", "bytes a token"),
        (f"{overall.rows['entropy'].mean:.2f}", about),
        (f"{perplexity(overall.rows['surprise'].mean):,.2f}", "perplexity of the text"),
    ]
    return [{"value": value, "what": what} for value, what in pairs]


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:,.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"


def _facts(url: str, storage: Storage, manifest: Manifest, signed: Sequence[Signed]) -> list[dict[str, Any]]:
    """What the manifest says, in groups."""
    teacher, counts, capture = manifest.teacher, manifest.corpus.counts, manifest.capture
    logits = capture.logits
    stored = f"top {logits.k}" if logits.policy == "top_k" else f"nucleus of {logits.mass:g}, at most {logits.k}"
    signals = [Fact("logits", f"{stored}; temperatures {', '.join(f'{t:g}' for t in logits.temperatures)}")]
    if capture.draws is not None:
        temperatures = ", ".join(f"{t:g}" for t in capture.draws.temperatures)
        signals.append(
            Fact("draws", f"{capture.draws.n} a row, from {capture.draws.region}; temperatures {temperatures}")
        )
    if capture.final is not None:
        signals.append(Fact("final", f"final hidden states and output head, {capture.final.dtype}"))
    if capture.hidden is not None:
        layers = ", ".join(map(str, capture.hidden.layer_numbers(teacher.num_layers)))
        signals.append(Fact("hidden", f"layers {layers}; {capture.hidden.dtype}"))
    if capture.attention is not None:
        attention = capture.attention
        signals.append(Fact("attention", f"{attention.n_heads} heads, {attention.keys} keys a row"))
    provenance = [
        Fact(term, _cut(value) or "not given")
        for term, value in (
            ("licence", manifest.provenance.licence),
            ("owner", manifest.provenance.owner),
            ("notes", manifest.provenance.notes),
        )
    ]
    shards = f"{len(ShardTable(manifest, storage)):,}" + ("" if manifest.complete else "; the run is not finished")
    groups = {
        "Teacher": [
            Fact("name", _cut(teacher.name)),
            Fact("architecture", _cut(teacher.architecture)),
            Fact("size", f"{teacher.num_layers} layers of {teacher.hidden_size:,}"),
            Fact("vocabulary", f"{teacher.vocab_size:,}"),
            Fact("computed in", _cut(teacher.dtype)),
            Fact("revision", _cut(teacher.revision or "not given")),
            Fact("weights", teacher.fingerprint, code=True),
            Fact("tokenizer", manifest.tokenizer.fingerprint, code=True),
        ],
        "Corpus": [
            Fact("documents", f"{counts.documents:,}"),
            Fact("samples", f"{counts.samples:,}, at most {manifest.corpus.settings.max_tokens:,} tokens each"),
            Fact("tokens", f"{counts.tokens:,}; {counts.loss_tokens:,} to be learned"),
            Fact(
                "left out", f"{counts.duplicates:,} duplicates, {counts.too_short:,} too short, {counts.empty:,} empty"
            ),
            Fact("content", manifest.corpus.fingerprint, code=True),
        ],
        "Signals": [*signals, Fact("format", f"version {manifest.format_version}"), Fact("shards", shards)],
        "Provenance": [
            *provenance,
            *_derived(manifest.derived),
            Fact("signed", "by nobody") if not signed else Fact("signed", "\n".join(map(_signature, signed))),
            Fact("manifest", manifest.digest(), code=True),
            Fact("read from", _cut(url)),
        ],
    }
    return [{"title": title, "facts": facts} for title, facts in groups.items()]


def _signature(signed: Signed) -> str:
    if signed.statement is None:
        return f"not valid, by key {signed.public_key}: {signed.problem}"
    signer, signed_at = signed.statement.signer, signed.statement.signed_at.isoformat(timespec="seconds")
    return f"“{signer}”, as it says itself, {signed_at}; the signature holds, of key {signed.public_key}"


def _derived(derived: Derivation | None) -> list[Fact]:
    if derived is None:
        return []
    sources = [f"{each.manifest_sha256} ({each.samples:,} samples)" for each in derived.sources[:10]]
    more = len(derived.sources) - len(sources)
    facts = [
        Fact("made by", derived.action),
        Fact("made of", "\n".join(sources) + (f"\nand {more} more" if more else "")),
    ]
    if derived.notes:
        facts.append(Fact("how", _cut(derived.notes)))
    return facts


def _reading(stats: Stats) -> str:
    n, total = stats.overall.samples, stats.samples_in_cache
    part = f"All {total:,} samples" if n == total else f"{n:,} of {total:,} samples, spread evenly over the cache"
    kind = (
        "exact, as stored with the draws"
        if stats.entropy_is_exact
        else "of the stored entries and one bucket for all other tokens, a lower bound of the whole distribution’s"
    )
    return (
        f"{part}; rows of the loss mask only. Entropy is in nats at temperature 1, {kind}. Support is exp(entropy): "
        "as many equally likely tokens have the same. Stored is the probability of the entries in the cache. "
        "Decorative tokens are Markdown’s marks, emoji and the like."
    )


def _figures(stats: Stats) -> list[plots.Figure]:
    entropy, coverage, totals = stats.overall.rows["entropy"], stats.overall.rows["coverage"], stats.manifest.totals
    high = max(0.5, math.ceil(2 * entropy.quantile(0.995)) / 2)
    low = min(0.9, math.floor(10 * coverage.quantile(0.02)) / 10)
    spread_of = "mean {:.2f}, median {:.2f}, 95 % of rows below {:.2f}".format
    stored = "mean {:.3f}, median {:.4f}, 95 % of rows above {:.3f}".format
    sizes: list[tuple[str, float]] = [(name, size / max(1, totals.tokens)) for name, size in totals.bytes.items()]
    sizes = sorted([*sizes, ("index", totals.index_bytes / max(1, totals.tokens))], key=lambda item: -item[1])
    drawn = [
        plots.Figure(
            "Entropy of rows",
            plots.histogram(
                "Histogram of entropy", plots.rebinned(entropy.counts, entropy.high, 0, high, 36), 0, high, "nats"
            ),
            spread_of(entropy.mean, entropy.quantile(0.5), entropy.quantile(0.95)),
        ),
        plots.Figure(
            "Probability that is stored",
            plots.histogram(
                "Histogram of the stored mass",
                plots.rebinned(coverage.counts, 1, low, 1, 36),
                low,
                1,
                "of a row’s mass",
            ),
            stored(coverage.mean, coverage.quantile(0.5), coverage.quantile(0.05)),
        ),
    ]
    rows, sums = stats.entropy_by_position
    longest = stats.manifest.corpus.settings.max_tokens
    there = rows > 0
    middles = (there.nonzero()[0] + 0.5) * longest / POSITION_BINS
    if there.sum() > 1:
        used = float((there.nonzero()[0][-1] + 1) * longest / POSITION_BINS)
        means = sums[there] / rows[there]
        drawn.append(
            plots.Figure(
                "Entropy along the sequence",
                plots.line("Mean entropy by position", middles, means, used, "position, tokens", "mean, nats"),
                f"{means[0]:.2f} nats at the start, {means[-1]:.2f} at the end",
            )
        )
    drawn.append(
        plots.Figure(
            "Size by signal",
            plots.bars("Bytes a token by signal", sizes, "B"),
            f"{sum(size for _, size in sizes):,.1f} bytes a token in all",
        )
    )
    return drawn


def _groups(stats: Stats) -> list[list[dict[str, Any]]]:
    """The rows of the table: all, the layers, the sources."""
    layers = sorted(stats.layers.by_name.items(), key=lambda item: (-item[1].rows["entropy"].n, item[0]))[:SHOWN_GROUPS]
    high = max(0.5, stats.overall.rows["entropy"].quantile(0.99))
    return [
        [_group("", "all", stats.overall, high)],
        [_group("layer", name, figures, high) for name, figures in layers],
        [_group("source", name, figures, high) for name, figures in stats.largest_sources(SHOWN_GROUPS).items()],
    ]


def _group(kind: str, name: str, figures: Figures, high: float) -> dict[str, Any]:
    found = figures.summary()
    entropy = found["entropy"]
    named = ", ".join(f"{key[1:]} %: {entropy[key]:.2f}" for key in ("p05", "p25", "p50", "p75", "p95"))
    return {
        "kind": kind,
        "name": name,
        "strip": plots.strip(f"Entropy, {named}", entropy, high),
        "before": [f"{found['samples']:,}", f"{found['rows']:,}", f"{entropy['mean']:.3f}"],
        "after": [
            f"{found['effective_support']['mean']:,.1f}",
            f"{found['top1_mass']['mean']:.3f}",
            f"{found['coverage']['mean']:.3f}",
            f"{found['response_length']['mean']:,.1f}",
            f"{found['perplexity']:,.2f}",
            f"{100 * found['decorative_share']:.2f} %",
        ],
    }


def _write(out: Path, page: bytes) -> None:
    """The whole file or none."""
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(page)
        temporary.chmod(0o644)
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
