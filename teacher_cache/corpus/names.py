"""Infer from file names their format, and whether they hold documents.

``format: auto`` derives each file's format from its name. If a folder or archive has record files (JSON, CSV,
Parquet), its other files (READMEs, licences, scripts) are not documents. If it has none, every file is plain text.
"""

import re
from collections.abc import Iterable

from fsspec.utils import glob_translate

from teacher_cache.corpus.archives import is_archive
from teacher_cache.corpus.expand import COMPRESSIONS

FORMATS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), "jsonl"),
    ".json": "json",
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
RECORD_FORMATS = frozenset(FORMATS.values())
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # hub metadata
_COMPANION = re.compile(r"(readme|licen[cs]e|copying|notice|citation|changelog)(\.(md|txt|rst))?|.*\.(md|py)", re.I)
_SPLIT = re.compile(r"(train|validation|valid|val|dev|test|eval)(?=$|[-_.])")


def choose(names: Iterable[str], wanted: str, all_of_them: bool) -> dict[str, str]:
    """Format by name of those ``names`` that hold documents; archives have the format ``archive``.

    ``wanted``: the configured format. ``all_of_them``: no pattern was given, so companion files are skipped.
    """
    names = list(names)
    if wanted != "auto":
        data = [name for name in names if not (all_of_them and wanted != "text" and _is_companion(name))] or names
        return {name: "archive" if is_archive(name) else wanted for name in data}
    names = [name for name in names if not (all_of_them and _is_hidden(name))]
    formats = {name: "archive" if is_archive(name) else _format(name) for name in names}
    records = {name: format for name, format in formats.items() if format is not None}
    return records or dict.fromkeys(names, "text")


def snapshots(names: Iterable[str]) -> set[str]:
    """The snapshots of a hub cache folder that contain ``names``."""
    return {name.split("/")[1] for name in names if name.startswith("snapshots/") and name.count("/") > 1}


def splits(names: Iterable[str]) -> dict[str, str]:
    """The data set splits (train, test, …) that occur in file names, each with one such file."""
    found: dict[str, str] = {}
    for name in names:
        for part in name.lower().split("/"):
            if match := _SPLIT.match(part):
                found.setdefault(match[1], name)
    return found


def matches(name: str, pattern: str) -> bool:
    """Whether the glob ``pattern`` matches ``name``, with the same rules as in a folder."""
    return re.fullmatch(glob_translate(pattern), name) is not None


def _format(name: str) -> str | None:
    base = _base(name)
    for ending in COMPRESSIONS:
        base = base.removesuffix(ending)
    if base in _DESCRIPTIONS:
        return None
    return next((format for ending, format in FORMATS.items() if base.endswith(ending)), None)


def _is_hidden(name: str) -> bool:
    """Whether a tool left this file: ``.gitattributes``, ``.cache/…``, ``__MACOSX/…``, ``_SUCCESS``."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/")) or _base(name) == "_success"


def _is_companion(name: str) -> bool:
    """Whether this is a file that commonly accompanies data (README, licence, metadata) and is not a record file."""
    along = _is_hidden(name) or _base(name) in _DESCRIPTIONS or _COMPANION.fullmatch(_base(name)) is not None
    return along and _format(name) is None


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()
