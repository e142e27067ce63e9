"""``cache-tools export``: a cache's tokens, and logits or hidden states, as a folder in another system's layout.

The folder is written under a temporary name and renamed when complete. One batch of sequences is in memory at a time.
"""

import html
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from schemas.failures import failure
from schemas.manifest import Manifest
from teacher_cache.records import TokenSample
from teacher_cache.shards.reader import CacheReader
from teacher_cache.user_file import umask
from tools.bridges.axolotl import AxolotlLayout
from tools.bridges.distillkit import DistillKitLayout
from tools.bridges.layout import Layout, Pairs
from tools.bridges.megatron import MegatronLayout
from tools.bridges.parquet import ParquetLayout
from tools.bridges.speculators import SpeculatorsLayout

logger = logging.getLogger(__name__)
LAYOUTS: tuple[type[Layout], ...] = (ParquetLayout, DistillKitLayout, AxolotlLayout, MegatronLayout, SpeculatorsLayout)
VALUES_AT_A_TIME = 1 << 21  # of the signal, per row group and in memory
TOKENS_PER_FILE = 1_000_000
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
    """The layout called ``name``.

    Raises UserError when a temperature is given for a layout without one, or when the cache lacks what the layout
    needs.
    """
    if name == AxolotlLayout.name:
        return AxolotlLayout(manifest, 1.0 if temperature is None else temperature)
    if temperature is not None:
        raise UserError(f"--temperature {temperature:g}: the layout {name} has no temperature; leave it out")
    return next(layout for layout in LAYOUTS if layout.name == name)(manifest)


def export(
    url: str,
    out: str,
    layout_name: str,
    temperature: float | None,
    tokens_per_file: int | None,
    advance: Callable[[int, int], None],
) -> Exported:
    """Write the cache at ``url`` to the new folder ``out``; progress as ``advance(samples done, samples in all)``.

    ``tokens_per_file``: of Parquet files, by default TOKENS_PER_FILE. Raises UserError when ``out`` exists or cannot be
    written, and for settings that the layout does not have.
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
    if tokens_per_file is not None and layout.pattern is None:
        raise UserError(
            f"--tokens-per-file {tokens_per_file}: the layout {layout_name} has no such files; leave it out"
        )
    if layout.signal == "logits" and reader.manifest.capture.draws is not None:
        logger.warning(
            "%s: the %d entries of each row are exported, its draws are not; for more entries, cache with "
            "capture.logits.k=64 and capture.draws=null",
            url,
            reader.manifest.capture.logits.k,
        )
    tokens_per_file = tokens_per_file or TOKENS_PER_FILE
    counts = Counts()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            batches = counts.counted(_batches(reader, layout, tokens_per_file), lambda n: advance(n, len(reader)))
            files = layout.write(batches, folder, tokens_per_file)
            (folder / CARD).write_text(_card(layout), encoding="utf-8")
            written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            folder.chmod(0o777 & ~umask())
            os.rename(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise failure(error, f"{out}: cannot be written") from error
    return Exported(out, layout.name, files, counts.samples, counts.tokens, counts.rows, bytes=written)


@dataclass
class Counts:
    """What was read so far."""

    samples: int = 0
    tokens: int = 0
    rows: int = 0

    def counted(self, batches: Iterable[Pairs], advance: Callable[[int], None]) -> Iterator[Pairs]:
        """The batches; each is counted, and ``advance(samples so far)`` called, once the next is asked for."""
        for pairs in batches:
            yield pairs
            self.samples += len(pairs)
            self.tokens += sum(len(tokens.input_ids) for tokens, _ in pairs)
            self.rows += sum(len(record.positions) for _, record in pairs)
            advance(self.samples)


def _batches(reader: CacheReader, layout: Layout, tokens_per_file: int) -> Iterator[Pairs]:
    """All samples, in batches bounded by their number of tokens."""
    max_tokens = min(tokens_per_file, VALUES_AT_A_TIME // layout.values_per_row)
    read = reader.read_logits if layout.signal == "logits" else reader.read_hidden
    numbers = iter(range(len(reader)))
    for first in numbers:
        pairs: list[tuple[TokenSample, Any]] = []
        tokens = 0
        for number in itertools.chain([first], numbers):
            pairs.append((reader.read_tokens(number), read(number)))
            tokens += len(pairs[-1][0].input_ids)
            if tokens >= max_tokens:
                break
        yield pairs


def _card(layout: Layout) -> str:
    """The data set card, README.md."""
    manifest = layout.manifest
    teacher, totals, provenance = manifest.teacher, manifest.totals, manifest.provenance
    left_out = [signal for signal in manifest.capture.signals if signal != layout.signal]
    facts = {
        "teacher": f"{teacher.name} ({teacher.architecture}), fingerprint {teacher.fingerprint}",
        "tokenizer": f"fingerprint {manifest.tokenizer.fingerprint}, {manifest.tokenizer.vocab_size} tokens",
        "cache": f"manifest {manifest.digest()}, {totals.samples} samples, {totals.tokens} tokens",
        **layout.stored(),
        "signals left out": ", ".join(left_out) or "none",
        "licence": provenance.licence or "not given",
        "owner": provenance.owner or "not given",
        "notes": provenance.notes or "none",
    }
    front_matter = ""
    if layout.pattern is not None:
        pattern = layout.pattern.replace("{number:05d}", "*").replace("{number}", "*")
        splits = f"  data_files:\n  - split: train\n    path: {pattern}\n"
        front_matter = f"---\nconfigs:\n- config_name: default\n{splits}---\n\n"
    lines = "".join(f"- {name}: {html.escape(' '.join(fact.split()))}\n" for name, fact in facts.items())
    return f"{front_matter}# {layout.title}\n\n{layout.about()}\n## From the cache's manifest\n\n{lines}"
