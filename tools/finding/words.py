"""Descriptions of a cache shared by catalogue, card and search: pull command, size, capture settings."""

import shlex

from schemas.catalog_file import MAX_LINE
from schemas.manifest import Manifest
from teacher_cache.signals.side_signal import listed_numbers
from teacher_cache.signals.side_table import SIDE_SIGNALS
from teacher_cache.text import one_line


def pull_command(url: str, digest: str | None) -> str:
    """The command that fetches the cache at ``url``; ``digest`` pins it to exactly this cache."""
    return f"cache-tools pull {shlex.quote(url)} FOLDER" + (f" --digest {digest}" if digest else "")


def total_bytes(manifest: Manifest) -> int:
    """Bytes of a cache's signals, indexes, tables and output head; without the manifest."""
    return sum(manifest.sizes().values())


def capture_in_words(manifest: Manifest) -> dict[str, str]:
    """One line per signal: what of it is stored."""
    capture, layers = manifest.capture, manifest.teacher.num_layers
    logits = capture.logits
    best = f"top {logits.k}" if logits.policy == "top_k" else f"nucleus of {logits.mass:g}, at most {logits.k}"
    words = {"logits": f"{best}; temperatures {listed_numbers(logits.temperatures)}; rows: {logits.positions}"}
    words |= {name: SIDE_SIGNALS[name].in_words(settings, layers) for name, settings in capture.side_settings.items()}
    return {signal: one_line(line, MAX_LINE) for signal, line in words.items()}
