"""The files in an archive (zip, tar, compressed tar), read one after the other, in the order of the archive.

Nothing is unpacked to disk. Names only become part of source ids; still, an archive with absolute names or ``..`` was
made to do harm, and is refused whole. Links and devices are no documents and are left out, by name. A compressed tar
is read twice, once for its names and once for its files: it cannot be read out of order.
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
_ODD = (RuntimeError, ValueError, OverflowError, LookupError)  # a password is wanted, an unknown method, wrong numbers
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, struct.error, *_DECOMPRESSION, *_ODD)
_TAR_ENDINGS = (".tar", ".tgz", ".tbz2", ".tbz", ".txz", ".tzst", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Contents:
    """Names of the files in an archive, in its order, and of what is no file and is left out."""

    names: list[str]
    left_out: list[str]


def is_archive(name: str) -> bool:
    """Whether a file of this name holds other files."""
    return name.lower().endswith((".zip", *_TAR_ENDINGS))


def list_archive(stored: Any, name: str, zstd_window_log: int) -> Contents:
    """What the open file ``stored`` holds. Raises Unreadable."""
    contents = Contents([], [])
    for member, is_file, _ in _members(stored, name, zstd_window_log):
        (contents.names if is_file else contents.left_out).append(_checked(member))
        if len(contents.names) + len(contents.left_out) > _MOST_MEMBERS:
            raise Unreadable(f"holds more than {_MOST_MEMBERS} files")
    return contents


def open_members(stored: Any, name: str, zstd_window_log: int) -> Iterator[IO[bytes]]:
    """Each file of ``list_archive`` as a stream, which can be read until the next is asked for. Raises Unreadable."""
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
            archive.members = []  # type: ignore[attr-defined]  # or it keeps all of them
            if member.isdir():
                continue
            is_file = member.isreg() and not member.issparse()
            yield member.name, is_file, _Member(archive.extractfile(member)) if opened and is_file else None


class _Member:
    """A file of an archive, whose faults are Unreadable."""

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
        raise Unreadable(f"the archive holds a file named {name!r}: names must lie below the archive; pack it again")
    return name
