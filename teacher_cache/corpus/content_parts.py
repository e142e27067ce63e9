"""The unit that a reader consumes: a file, or a member of an archive, as a stream of decompressed bytes."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from schemas.cache_config import SourceConfig
from schemas.errors import UserError
from teacher_cache.corpus.archives import list_archive, open_members
from teacher_cache.corpus.corpus_files import EVERYTHING, SourceFile, check_one_part, valid_utf8
from teacher_cache.corpus.decoding import as_utf8
from teacher_cache.corpus.expand import COMPRESSIONS, Unreadable, expanded
from teacher_cache.corpus.names import choose, matches

MOST_BYTES = 1 << 29
"""Maximum size of a record, a document, or a file that must fit in memory as a whole."""


@dataclass(frozen=True)
class Part:
    """One file to read: Parquet as stored and seekable, anything else as UTF-8 without a byte order mark."""

    name: str  # for source ids
    path: str  # for error messages
    format: str
    stream: Any


def open_parts(file: SourceFile, source: SourceConfig, left_out: list[str]) -> Iterator[Part]:
    """Yield the parts of ``file``, each readable until the next iteration.

    Appends the names of archive members that are not documents to ``left_out``. Raises Unreadable (an OSError) for
    damaged files, UserError for nested archives and for archives without a single document.
    """
    if file.format != "archive":
        stored = file.open()
        if file.format == "parquet" and not file.name.lower().endswith(COMPRESSIONS):
            with stored:
                yield Part(file.name, file.path, file.format, stored)
        else:
            with expanded(stored, file.name, source.zstd_window_log) as stream:
                yield _part(file.name, file.path, file.format, stream, source)
        return
    with file.open() as stored:
        contents = list_archive(stored, file.name, source.zstd_window_log)
    chosen = [name for name in contents.names if file.members == EVERYTHING or matches(name, file.members)]
    formats = choose(chosen, source.format, all_of_them=file.members == EVERYTHING)
    if not formats:
        raise UserError(f"{file.path}: none of the archive's {len(contents.names)} files match; correct `pattern`")
    if inner := [name for name, format in formats.items() if format == "archive"]:
        raise UserError(f"{file.path}: nested archive {inner[0]!r}; unpack it, or exclude it with `pattern`")
    if source.format == "auto" and file.members == EVERYTHING:
        check_one_part(formats, file.path)
    left_out += [f"{file.name}/{valid_utf8(n)}" for n in (*contents.names, *contents.left_out) if n not in formats]
    with file.open() as stored:
        members = open_members(stored, file.name, source.zstd_window_log)
        for name, member in zip(contents.names, members, strict=True):
            if name in formats:
                inside = f"/{valid_utf8(name)}"
                try:
                    with expanded(member, name, source.zstd_window_log) as stream:
                        yield _part(file.name + inside, file.path + inside, formats[name], stream, source)
                except OSError as error:
                    raise UserError(f"{file.path}{inside}: cannot be read: {error}") from None


def _part(name: str, path: str, format: str, stream: BinaryIO, source: SourceConfig) -> Part:
    if format == "parquet":
        return Part(name, path, format, io.BytesIO(read_all(stream)))
    return Part(name, path, format, as_utf8(stream, source.encoding))


def read_all(stream: BinaryIO) -> bytearray:
    """Read the rest of the stream. Raises Unreadable beyond MOST_BYTES."""
    data = bytearray()
    while chunk := stream.read(1 << 20):
        data += chunk
        if len(data) > MOST_BYTES:
            raise Unreadable(f"larger than {MOST_BYTES} bytes, which must fit in memory at once; split the file")
    return data
