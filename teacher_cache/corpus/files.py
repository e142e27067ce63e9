"""Which files a source consists of, in a fixed order, on any fsspec file system."""

import glob
import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from fsspec.core import url_to_fs

from schemas.cache_config import SourceConfig
from schemas.errors import UserError

_READ_BYTES = 1 << 17


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; ``name`` is its path relative to the source, never an absolute one."""

    fs: Any
    path: str
    name: str

    def open(self) -> Any:
        """Open for reading the bytes as they are stored."""
        return self.fs.open(self.path, "rb")

    def open_expanded(self) -> Any:
        """Open for reading lines of bytes, decompressed as the file's extension says (gz, zst, bz2, xz, …)."""
        if self.path.endswith(".zst"):  # fsspec's reader has no lines and takes a truncated file for a whole one
            return io.BufferedReader(pa.CompressedInputStream(self.open(), "zstd"), _READ_BYTES)
        return self.fs.open(self.path, "rb", compression="infer")


def list_files(source: SourceConfig, where: str) -> list[SourceFile]:
    """The files of ``source`` sorted by name. Raises UserError, naming the key ``where``, when there is none.

    Links to files are followed, links to folders are not. A data set saved by Hugging Face ``datasets`` counts as
    its files, whatever ``pattern`` says, less the ``cache-*`` files that other programs leave in it.
    """
    try:
        fs, root = url_to_fs(source.path)
        if fs.isfile(root):
            return [SourceFile(fs, root, _printable(root.rsplit("/", 1)[-1]))]
        if not fs.isdir(root):
            raise UserError(f"{where}.path: {source.path}: no such file or folder")
        root = root.rstrip("/")
        pattern = "**" if source.format == "hf_dataset" else source.pattern
        found = fs.glob(f"{glob.escape(root)}/{pattern}", detail=True)
        paths = [p for p, info in found.items() if info["type"] == "file" or (info.get("islink") and fs.isfile(p))]
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{where}.path: {source.path}: cannot be read: {error}") from None
    files = [SourceFile(fs, path, _printable(path[len(root) + 1 :])) for path in paths]
    if source.format == "hf_dataset":
        files = [file for file in files if not file.name.rsplit("/", 1)[-1].startswith("cache-")]
    if not files:
        raise UserError(f"{where}: no file in {source.path} matches the pattern {pattern!r}; correct `pattern`")
    return sorted(files, key=lambda file: file.name)


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
