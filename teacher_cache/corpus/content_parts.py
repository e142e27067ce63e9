"""What a reader is given at a time: a file, or a file in an archive, as a stream of expanded bytes."""

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
"""A record, a document, or a file that has to be in memory as a whole is at most so large."""


@dataclass(frozen=True)
class Part:
    """One file to be read: Parquet as it is stored and seekable, anything else as UTF-8 without a byte order mark."""

    name: str  # for source ids
    path: str  # for error messages
    format: str
    stream: Any


def open_parts(file: SourceFile, source: SourceConfig, left_out: list[str]) -> Iterator[Part]:
    """The parts of ``file``, each readable until the next is asked for.

    Names of an archive's members that are no documents are added to ``left_out``. Raises Unreadable (an OSError) for
    damaged files, UserError for archives that hold archives, or nothing that is read.
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
        raise UserError(f"{file.path}: of {len(contents.names)} files in the archive none is read; correct `pattern`")
    if inner := [name for name, format in formats.items() if format == "archive"]:
        raise UserError(f"{file.path}: holds the archive {inner[0]!r}: unpack it, or leave it out by `pattern`")
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
    """The bytes that are left. Raises Unreadable for more than MOST_BYTES."""
    data = bytearray()
    while chunk := stream.read(1 << 20):
        data += chunk
        if len(data) > MOST_BYTES:
            raise Unreadable(f"larger than {MOST_BYTES} bytes, which would have to be in memory at once; cut it")
    return data
