"""The page: what is measured and known of a cache, put into the template; style, script and data are inside.

Nothing of a cache becomes markup: the template escapes all text, and the data of the samples is JSON that the script
puts in as text. A content security policy allows this style and this script by their hashes and nothing else: no
request at all.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from schemas.errors import UserError
from teacher_cache.shards.marks import up_to_date_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from tools.looking.figures import exact_column, measure
from tools.looking.sampling import choose, choose_samples, find_samples, read_each
from tools.looking.stats import Stats
from tools.output import write_whole
from tools.page_policy import page_policy
from tools.report.facts import cut, facts, lead
from tools.report.measured import SHOWN_GROUPS, figures, groups, key_figures, reading
from tools.report.sample_columns import viewer_sample
from tools.report.token_text import Spelling, load_tokenizer
from tools.trust.signatures import Signed, signatures

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000  # of the file
MOST_DATA_BYTES = 4_500_000  # of the samples in it
MEASURED_SAMPLES = 500  # whose figures are shown
STEPS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)  # nats, at which the colour changes
_DANGEROUS = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


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
    write_whole(out, page)
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
        policy=Markup(page_policy(style, script, "img-src data:")),
        style=Markup(style),
        script=Markup(script),
        data=Markup(_json(data)),
        title=cut(manifest.teacher.name),
        lead=lead(manifest),
        key_figures=key_figures(stats),
        facts=facts(url, storage, manifest, signed),
        reading=reading(stats),
        figures=figures(stats),
        groups=groups(stats),
        more_sources=max(0, len(stats.sources.by_name) - SHOWN_GROUPS),
        legend=["0", *(f"{step:g}" for step in STEPS[:-1]), f"{STEPS[-1]:g}+ nats"],
        left_out=left_out,
        footer=f"Written by cache-tools report from the cache whose manifest is {manifest.digest()}.",
    )
    return text.encode("utf-8", "replace")
