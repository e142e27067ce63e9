"""What the names of files say: their format, and whether they hold documents at all.

``format: auto`` takes each file's format from its name. Where a folder or an archive holds records (JSON, CSV,
Parquet), other files in it are no documents: READMEs, licences, scripts. Where it holds none, every file is a text.
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
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # of hubs
_COMPANION = re.compile(r"(readme|licen[cs]e|copying|notice|citation|changelog)(\.(md|txt|rst))?|.*\.(md|py)", re.I)
_SPLIT = re.compile(r"(train|validation|valid|val|dev|test|eval)(?=$|[-_.])")


def choose(names: Iterable[str], wanted: str, all_of_them: bool) -> dict[str, str]:
    """Format by name of those of ``names`` that hold documents; archives have the format ``archive``.

    ``wanted`` is the format asked for. ``all_of_them``: nobody said by a pattern which files are meant, so that what
    only comes along with the data is left out.
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
    """The snapshots of a hub's cache folder that ``names`` lie in."""
    return {name.split("/")[1] for name in names if name.startswith("snapshots/") and name.count("/") > 1}


def splits(names: Iterable[str]) -> dict[str, str]:
    """The parts of a data set (train, test, …) that the names of its files speak of, each with one such file."""
    found: dict[str, str] = {}
    for name in names:
        for part in name.lower().split("/"):
            if match := _SPLIT.match(part):
                found.setdefault(match[1], name)
    return found


def matches(name: str, pattern: str) -> bool:
    """Whether the glob ``pattern`` means ``name``, as it would in a folder."""
    return re.fullmatch(glob_translate(pattern), name) is not None


def _format(name: str) -> str | None:
    base = _base(name)
    for ending in COMPRESSIONS:
        base = base.removesuffix(ending)
    if base in _DESCRIPTIONS:
        return None
    return next((format for ending, format in FORMATS.items() if base.endswith(ending)), None)


def _is_hidden(name: str) -> bool:
    """Files that programs leave behind: ``.gitattributes``, ``.cache/…``, ``__MACOSX/…``, ``_SUCCESS``."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/")) or _base(name) == "_success"


def _is_companion(name: str) -> bool:
    """Files that no format of records is named like and that often lie beside them."""
    along = _is_hidden(name) or _base(name) in _DESCRIPTIONS or _COMPANION.fullmatch(_base(name)) is not None
    return along and _format(name) is None


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()
