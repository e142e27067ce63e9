"""Read the files of an archive (zip, tar, compressed tar) sequentially, in archive order.

Nothing is unpacked to disk. Member names only end up in source ids; even so, an archive with absolute paths or ``..``
is malicious and rejected as a whole. Links and devices are not documents: they are skipped and listed by name. A
compressed tar is read twice, once for names and once for contents, because it has no random access.
"""

import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from teacher_cache.corpus.expand import Unreadable, check_expansion, expanded

_MOST_MEMBERS = 1_000_000
_DECOMPRESSION = (zlib.error, lzma.LZMAError, EOFError)
_ODD = (RuntimeError, ValueError, OverflowError, LookupError)  # password required, unknown method, invalid numbers
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, struct.error, *_DECOMPRESSION, *_ODD)
_TAR_ENDINGS = (".tar", ".tgz", ".tbz2", ".tbz", ".txz", ".tzst", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Contents:
    """Names of an archive's regular files, in archive order, and of its skipped members (links, devices)."""

    names: list[str]
    left_out: list[str]


def is_archive(name: str) -> bool:
    """Whether the file name has an archive extension."""
    return name.lower().endswith((".zip", *_TAR_ENDINGS))


def list_archive(stored: Any, name: str, zstd_window_log: int) -> Contents:
    """List the members of the open archive ``stored``. Raises Unreadable."""
    contents = Contents([], [])
    for member, is_file, _ in _members(stored, name, zstd_window_log):
        (contents.names if is_file else contents.left_out).append(_checked(member))
        if len(contents.names) + len(contents.left_out) > _MOST_MEMBERS:
            raise Unreadable(f"holds more than {_MOST_MEMBERS} files")
    return contents


def open_members(stored: Any, name: str, zstd_window_log: int) -> Iterator[IO[bytes]]:
    """Yield each file of ``list_archive`` as a stream, valid until the next iteration. Raises Unreadable."""
    for _, is_file, stream in _members(stored, name, zstd_window_log, opened=True):
        if is_file:
            yield stream


def _members(stored: Any, name: str, zstd_window_log: int, opened: bool = False) -> Iterator[tuple[str, bool, Any]]:
    try:
        if name.lower().endswith(".zip"):
            yield from _zip_members(stored, opened)
        else:
            with expanded(stored, name, zstd_window_log) as stream:
                yield from _tar_members(stream, opened)
    except _BROKEN as error:
        raise Unreadable(f"damaged archive: {error}") from None


def _zip_members(stored: Any, opened: bool) -> Iterator[tuple[str, bool, Any]]:
    with zipfile.ZipFile(stored) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                yield member.filename, False, None
                continue
            check_expansion(member.file_size, member.compress_size)
            if opened:
                with archive.open(member) as stream:
                    yield member.filename, True, _Member(stream)
            else:
                yield member.filename, True, None


def _tar_members(stream: Any, opened: bool) -> Iterator[tuple[str, bool, Any]]:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # otherwise tarfile accumulates every header
            if member.isdir():
                continue
            is_file = member.isreg() and not member.issparse()
            yield member.name, is_file, _Member(archive.extractfile(member)) if opened and is_file else None


class _Member:
    """Archive member stream that raises Unreadable for corrupt data."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except _BROKEN as error:
            raise Unreadable(f"damaged archive: {error}") from None

    def close(self) -> None:
        self._stream.close()


def _checked(name: str) -> str:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or parts[0][1:2] == ":":
        raise Unreadable(f"unsafe member name {name!r}: expected a relative path without '..'; repack the archive")
    return name
