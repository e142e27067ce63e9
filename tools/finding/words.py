"""Descriptions of a cache shared by catalogue, card and search: pull command, size, capture settings."""

import shlex
from collections.abc import Sequence
from typing import Any

from schemas.cache_config import layer_number
from schemas.catalog_file import MAX_LINE
from schemas.manifest import Manifest
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
    words = {"logits": f"{best}; temperatures {_list(logits.temperatures)}; rows: {logits.positions}"}
    if (draws := capture.draws) is not None:
        where = "the tail" if draws.region == "tail" else "the whole distribution"
        words["draws"] = f"{draws.n} from {where}; temperatures {_list(draws.temperatures)}"
    if capture.final is not None:
        words["final"] = f"{capture.final.dtype}; rows: {capture.final.positions}"
    if (hidden := capture.hidden) is not None:
        words["hidden"] = (
            f"layers {_list(hidden.layer_numbers(layers))}; {hidden.dtype}; rows: {_rows(hidden.positions)}"
        )
    if (attention := capture.attention) is not None:
        words["attention"] = (
            f"layer {layer_number(attention.layer, layers)}; {attention.n_heads} heads; {attention.keys} keys; "
            f"rows: {_rows(attention.positions)}"
        )
    return {signal: one_line(line, MAX_LINE) for signal, line in words.items()}


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:50])


def _rows(positions: Any) -> str:
    return positions if isinstance(positions, str) else f"every {positions.every}"
