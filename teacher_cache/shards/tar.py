"""Writing a WebDataset tar whose member offsets are known, and the same bytes for the same samples."""

import hashlib
import tarfile
from pathlib import Path
from types import TracebackType

import xxhash

from schemas.manifest import FileEntry, MemberIndex

BLOCK = 512


def member_name(key: str, signal: str) -> str:
    """Name of a sample's member in the tar of ``signal``."""
    return f"{key}.{signal}.arrow"


def member_bytes(payload_bytes: int) -> int:
    """What a member takes in the tar: its header and its padded payload."""
    return BLOCK + -(-payload_bytes // BLOCK) * BLOCK


def checksum(payload: bytes) -> str:
    """xxh3-64 of a member's payload, 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(payload)


class TarWriter:
    """Writes members one after the other to ``path``; ``index()`` says where they lie."""

    def __init__(self, path: Path, signal: str) -> None:
        self._signal = signal
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self._position = 0
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._checksums: list[str] = []

    def add(self, key: str, payload: bytes) -> None:
        """Append one sample's payload. Raises OSError when the disk is full."""
        header = tarfile.TarInfo(member_name(key, self._signal))
        header.size = len(payload)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        self._offsets.append(self._position)
        self._sizes.append(len(payload))
        self._checksums.append(checksum(payload))
        self._write(payload)
        self._write(bytes(-len(payload) % BLOCK))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._position += len(data)

    def index(self) -> MemberIndex:
        """The index of the closed file."""
        return MemberIndex(
            file=FileEntry(bytes=self._position, sha256=self._sha256.hexdigest()),
            offsets=self._offsets,
            sizes=self._sizes,
            checksums=self._checksums,
        )

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write(bytes(2 * BLOCK))
        finally:
            self._file.close()
