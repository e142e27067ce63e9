"""``cache-tools export``: a cache's tokens and logits as a folder of Parquet files in another system's layout.

The folder is written under a temporary name and renamed when complete. One batch of sequences is in memory at a time.
"""

import html
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from schemas.errors import UserError
from schemas.failures import failure
from schemas.manifest import Manifest
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.shards.reader import CacheReader
from teacher_cache.user_file import umask
from tools.bridges.axolotl import AxolotlLayout
from tools.bridges.distillkit import DistillKitLayout
from tools.bridges.layout import Layout
from tools.bridges.parquet import ParquetLayout

logger = logging.getLogger(__name__)
LAYOUTS: tuple[type[Layout], ...] = (ParquetLayout, DistillKitLayout, AxolotlLayout)
ENTRIES_AT_A_TIME = 1 << 21  # stored entries per row group, and in memory
CARD = "README.md"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: str
    layout: str
    files: int
    samples: int
    tokens: int
    rows: int  # of logits
    bytes: int


def make_layout(name: str, manifest: Manifest, temperature: float | None) -> Layout:
    """The layout called ``name``. Raises UserError when a temperature is given for a layout without one."""
    if name == AxolotlLayout.name:
        return AxolotlLayout(manifest, 1.0 if temperature is None else temperature)
    if temperature is not None:
        raise UserError(
            f"--temperature {temperature:g}: the layout {name} stores log-probabilities at temperature 1; leave it out"
        )
    return next(layout for layout in LAYOUTS if layout.name == name)(manifest)


def export(
    url: str,
    out: str,
    layout_name: str,
    temperature: float | None,
    tokens_per_file: int,
    advance: Callable[[int, int], None],
) -> Exported:
    """Write the cache at ``url`` to the new folder ``out``; progress as ``advance(samples done, samples in all)``.

    Raises UserError when ``out`` exists or cannot be written.
    """
    target = Path(out)
    if "://" in out:
        raise UserError(f"{out}: an export is written to a local folder; give one, and upload it when it is complete")
    if target.exists() or target.is_symlink():
        raise UserError(f"{out}: exists already; choose a new folder")
    reader = CacheReader(url)
    if not len(reader):
        raise UserError(f"{url}: the cache has no committed samples, so there is nothing to export")
    layout = make_layout(layout_name, reader.manifest, temperature)
    if reader.manifest.capture.draws is not None:
        logger.warning(
            "%s: the %d entries of each row are exported, its draws are not; for more entries, cache with "
            "capture.logits.k=64 and capture.draws=null",
            url,
            reader.manifest.capture.logits.k,
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            counted = _write_files(reader, layout, folder, tokens_per_file, advance)
            for name, text in {**layout.more_files(), CARD: _card(layout, reader.manifest)}.items():
                (folder / name).write_text(text, encoding="utf-8")
            written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            folder.chmod(0o777 & ~umask())
            os.rename(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise failure(error, f"{out}: cannot be written") from error
    return Exported(out, layout.name, *counted, bytes=written)


def _write_files(
    reader: CacheReader, layout: Layout, folder: Path, tokens_per_file: int, advance: Callable[[int, int], None]
) -> tuple[int, int, int, int]:
    """Write the Parquet files; returns the numbers of files, samples, tokens and rows."""
    n_files = n_samples = n_tokens = n_rows = in_file = 0
    writer: pq.ParquetWriter | None = None
    try:
        for pairs in _batches(reader, tokens_per_file):
            batch = layout.batch(pairs)
            if writer is None:
                path = folder / layout.pattern.format(number=n_files)
                path.parent.mkdir(exist_ok=True)
                writer = pq.ParquetWriter(path, batch.schema, compression="zstd")
                n_files, in_file = n_files + 1, 0
            writer.write_batch(batch)
            tokens = sum(len(sample.input_ids) for sample, _ in pairs)
            n_samples, n_tokens, in_file = n_samples + len(pairs), n_tokens + tokens, in_file + tokens
            n_rows += sum(len(sample.positions) for _, sample in pairs)
            if in_file >= tokens_per_file:
                writer.close()
                writer = None
            advance(n_samples, len(reader))
    finally:
        if writer is not None:
            writer.close()
    return n_files, n_samples, n_tokens, n_rows


def _batches(reader: CacheReader, tokens_per_file: int) -> Iterator[list[tuple[TokenSample, LogitsSample]]]:
    """All samples, in batches bounded by their number of tokens."""
    max_tokens = min(tokens_per_file, ENTRIES_AT_A_TIME // reader.manifest.capture.logits.k)
    numbers = iter(range(len(reader)))
    for first in numbers:
        pairs: list[tuple[TokenSample, LogitsSample]] = []
        tokens = 0
        for number in itertools.chain([first], numbers):
            pairs.append((reader.read_tokens(number), reader.read_logits(number)))
            tokens += len(pairs[-1][0].input_ids)
            if tokens >= max_tokens:
                break
        yield pairs


def _card(layout: Layout, manifest: Manifest) -> str:
    """The data set card, README.md."""
    teacher, totals, provenance = manifest.teacher, manifest.totals, manifest.provenance
    logits = manifest.capture.logits
    left_out = [signal for signal in manifest.capture.signals if signal != "logits"]
    facts = {
        "teacher": f"{teacher.name} ({teacher.architecture}), fingerprint {teacher.fingerprint}",
        "tokenizer": f"fingerprint {manifest.tokenizer.fingerprint}, {manifest.tokenizer.vocab_size} tokens",
        "cache": f"manifest {manifest.digest()}, {totals.samples} samples, {totals.tokens} tokens",
        "stored": f"{logits.policy}, k = {logits.k}, rows: {logits.positions}",
        "log-probabilities in the cache": manifest.codec.logprobs,
        "signals left out": ", ".join(left_out) or "none",
        "licence": provenance.licence or "not given",
        "owner": provenance.owner or "not given",
        "notes": provenance.notes or "none",
    }
    pattern = layout.pattern.replace("{number:05d}", "*").replace("{number}", "*")
    front_matter = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {pattern}\n---\n"
    lines = "".join(f"- {name}: {html.escape(' '.join(fact.split()))}\n" for name, fact in facts.items())
    return f"{front_matter}\n# Logits of a teacher\n\n{layout.about()}\n## From the cache's manifest\n\n{lines}"
