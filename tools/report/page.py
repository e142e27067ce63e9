"""The report page: statistics and facts rendered into the template, with style, script and data inlined.

Nothing from a cache becomes markup: the template escapes all text, and the samples are JSON that the script inserts as
text. The content security policy allows only this style and script, by hash, and no network requests.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from schemas.errors import UserError
from teacher_cache.pages.frame import inert_json, render_page
from teacher_cache.shards.marks import up_to_date_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.user_file import write_whole
from tools.looking.align import Aligner, measure_alignment
from tools.looking.figures import exact_column, measure
from tools.looking.sampling import choose, choose_samples, find_samples, read_each
from tools.looking.stats import Stats
from tools.report import student_tokens
from tools.report.facts import cut, facts, lead
from tools.report.measured import SHOWN_GROUPS, figures, groups, key_figures, reading
from tools.report.sample_columns import viewer_sample
from tools.report.token_text import Spelling, load_tokenizer
from tools.trust.signatures import Signed, signatures

HERE = Path(__file__).parent
SCRIPTS = ("elements.js", "page_parts.js", "page.js", "page_student.js")  # one after the other in one element
MOST_BYTES = 5_000_000  # of the file
MOST_DATA_BYTES = 4_500_000  # of the samples in it
MEASURED_SAMPLES = 500  # for the statistics
STEPS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)  # nats; thresholds of the colour scale


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
    student: str | None = None,
    trust_remote_code: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Write the report on the cache at ``url`` to ``out``.

    ``samples``: how many to show token by token, spread over the layers of the data mix, after those of ``keys``.
    ``tokenizer``: the teacher's folder, to spell tokens that do not occur in the texts. ``student``: the folder of a
    student with another tokenizer, to show what it would be taught. Raises UserError when there is no such cache,
    sample or tokenizer, or the file cannot be written, CorruptCacheError when a file of the cache is damaged.
    """
    storage = Storage(url)
    manifest = up_to_date_manifest(storage)
    reader = CacheReader(url, ("tokens", *manifest.capture.signals), manifest)
    wanted = find_samples(reader, keys)
    speller = None if tokenizer is None else load_tokenizer(tokenizer, manifest.tokenizer)
    spelling = Spelling(manifest.teacher.vocab_size, speller)
    aligner = None if student is None else Aligner(reader, student, trust_remote_code, key="--student")
    stats, by_mix_layer = _measure(reader, spelling, advance)
    shown = list(dict.fromkeys([*wanted, *spread(by_mix_layer, samples)]))
    taught, of_student = (None, None) if aligner is None else _student(reader, aligner, shown, advance)
    found, left_out = _viewer_samples(reader, shown, spelling, MOST_DATA_BYTES - len(inert_json(of_student).encode()))
    data = {"samples": found, "steps": STEPS, "exact": stats.entropy_is_exact, "student": of_student}
    page = _render(url, storage, stats, signatures(storage, manifest), data, left_out, taught)
    if len(page) > MOST_BYTES:
        raise UserError(
            f"{url}: the report would have {len(page):,} bytes, wanted at most {MOST_BYTES:,}; use fewer --samples"
        )
    write_whole(out, page)
    return Report(str(out), len(page), [sample["key"] for sample in found], left_out)


def _measure(
    reader: CacheReader, spelling: Spelling, advance: Callable[[int, int], None]
) -> tuple[Stats, dict[str, list[int]]]:
    """Statistics of up to ``MEASURED_SAMPLES`` samples, and the numbers of these samples by layer of the data mix."""
    exact = exact_column(reader.manifest)
    stats = Stats(reader.manifest, len(reader), exact is not None)
    chosen = choose_samples(reader, MEASURED_SAMPLES).tolist()
    by_mix_layer: dict[str, list[int]] = {}
    measured = read_each(chosen, lambda number: measure(reader, number, exact), advance)
    for number, sample in zip(chosen, measured, strict=True):
        stats.add(sample)
        spelling.add(sample.tokens)
        by_mix_layer.setdefault(sample.tokens.layer, []).append(number)
    return stats, by_mix_layer


def _student(
    reader: CacheReader, aligner: Aligner, shown: list[int], advance: Callable[[int, int], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a student would be taught: tables of shares, and data of the samples that are shown."""
    alignment = measure_alignment(reader, aligner, student_tokens.MEASURED_SAMPLES, advance=advance)
    taught = {"name": cut(Path(aligner.tokenizer.name_or_path).name), **student_tokens.shares(alignment)}
    kinds = [{name: kind[name] for name in ("name", "colour")} for kind in taught["kinds"]]
    return taught, {"kinds": kinds, "samples": student_tokens.viewer_samples(aligner, shown)}


def spread(groups: dict[str, list[int]], wanted: int) -> list[int]:
    """``wanted`` samples, spread evenly over the groups as far as they go, and evenly within each group."""
    quotas = dict.fromkeys(sorted(groups), 0)
    while sum(quotas.values()) < min(wanted, sum(map(len, groups.values()))):
        not_exhausted = [name for name in quotas if quotas[name] < len(groups[name])]
        quotas[min(not_exhausted, key=lambda name: quotas[name])] += 1
    return [groups[name][i] for name, quota in quotas.items() if quota for i in choose(len(groups[name]), quota)]


def _viewer_samples(
    reader: CacheReader, shown: Sequence[int], spelling: Spelling, most_bytes: int
) -> tuple[list[dict[str, Any]], int]:
    """As many samples as fit in ``most_bytes``, and the number left out."""
    found: list[dict[str, Any]] = []
    size = 0
    for done, number in enumerate(shown):
        sample = viewer_sample(reader, number, spelling)
        size += len(inert_json(sample).encode())
        if size > most_bytes:
            return found, len(shown) - done
        found.append(sample)
    return found, 0


def _render(
    url: str,
    storage: Storage,
    stats: Stats,
    signed: Sequence[Signed],
    data: dict[str, Any],
    left_out: int,
    taught: dict[str, Any] | None,
) -> bytes:
    manifest = stats.manifest
    return render_page(
        HERE,
        SCRIPTS,
        data,
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
        student=taught,
        footer=f"Written by cache-tools report from the cache with manifest {manifest.digest()}.",
    )
