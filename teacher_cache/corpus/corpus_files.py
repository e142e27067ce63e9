"""List the files of a source in a fixed order, on any fsspec file system, with the format of each."""

import glob
from dataclasses import dataclass
from typing import Any

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from schemas.failures import failure
from teacher_cache.corpus.names import RECORD_FORMATS, choose, snapshots, splits
from teacher_cache.shards.opening import open_store

EVERYTHING = "*"  # the default pattern
_SAVED = {"state.json", "dataset_dict.json"}  # in a folder written by save_to_disk


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; ``name`` is its path relative to the source, never absolute."""

    fs: Any
    path: str
    name: str
    format: str  # or `archive`
    members: str = EVERYTHING  # of an archive: glob for its member names

    def open(self) -> Any:
        """Open the file for reading its stored bytes."""
        return self.fs.open(self.path, "rb")


@dataclass(frozen=True)
class Found:
    """The files of a source, sorted by name, and the names of files below its path that are not documents."""

    files: list[SourceFile]
    left_out: list[str]


def list_files(source: SourceConfig, where: str) -> list[SourceFile]:
    """The files of ``source`` sorted by name; see ``find_files``."""
    return find_files(source, where).files


def find_files(source: SourceConfig, where: str) -> Found:
    """The files of ``source``. Raises UserError, naming the config key ``where``, if there are none.

    Follows links to files, not to folders. For a data set saved by Hugging Face ``datasets``, ``pattern`` is ignored
    and ``cache-*`` files are skipped. Under ``auto``, a folder with several splits (train, test) is an error: splits
    are never mixed.
    """
    try:
        fs, root = open_store(source.path)
        if fs.isfile(root):
            name = valid_utf8(root.rsplit("/", 1)[-1])
            format = choose([name], source.format, all_of_them=False)[name]
            return Found([SourceFile(fs, root, name, format, source.pattern)], [])
        if not fs.isdir(root):
            raise UserError(f"{where}.path: {source.path}: no such file or folder")
        root = root.rstrip("/")
        saved = _is_saved(source, fs, root)
        recursive = saved or (source.format == "auto" and source.pattern == EVERYTHING)
        pattern = "**" if recursive else source.pattern
        found = fs.glob(f"{glob.escape(root)}/{pattern}", detail=True)
        paths = [p for p, info in found.items() if info["type"] == "file" or (info.get("islink") and fs.isfile(p))]
    except UserError as error:
        raise error if str(error).startswith(where) else UserError(f"{where}.path: {error}") from None
    except (OSError, ValueError, ImportError) as error:
        raise failure(error, f"{where}.path: {source.path}: cannot be read") from None
    by_name = {valid_utf8(path[len(root) + 1 :]): path for path in paths}
    if saved:
        formats = {name: "hf_dataset" for name in by_name if not name.rsplit("/", 1)[-1].startswith("cache-")}
    else:
        formats = choose(by_name, source.format, all_of_them=source.pattern == EVERYTHING)
    if not formats:
        below = "" if "**" in pattern else " (`**/*` searches the folders below, too)"
        raise UserError(f"{where}: no file in {source.path} matches the pattern {pattern!r}{below}; correct `pattern`")
    if source.format == "auto" and source.pattern == EVERYTHING and not saved:
        check_one_part(formats, f"{where}.path: {source.path}")
    files = [SourceFile(fs, by_name[name], name, formats[name]) for name in sorted(formats)]
    return Found(files, [] if saved else sorted(by_name.keys() - formats.keys()))


def valid_utf8(name: str) -> str:
    """A file name with undecodable bytes replaced, so that UTF-8 can encode it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _is_saved(source: SourceConfig, fs: Any, root: str) -> bool:
    """Whether the folder was written by ``save_to_disk``."""
    return source.format == "hf_dataset" or (
        source.format == "auto" and any(fs.isfile(f"{root}/{name}") for name in _SAVED)
    )


def check_one_part(formats: dict[str, str], where: str) -> None:
    """Raise UserError when these files belong to several splits (train, test) or snapshots of a data set."""
    if len(revisions := snapshots(formats)) > 1:
        raise UserError(f"{where} holds several snapshots; append one to `path`: snapshots/{min(revisions)}, …")
    parts = splits(name for name, format in formats.items() if format in RECORD_FORMATS)
    if len(parts) > 1:
        raise UserError(
            f"{where} holds several splits of a data set: {', '.join(sorted(parts))} (such as {min(parts.values())}); "
            "select one with `pattern`, such as '**/train*'"
        )
