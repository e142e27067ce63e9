"""Write WebDataset tars with known member offsets; the same samples give the same bytes."""

import hashlib
import itertools
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import xxhash

from schemas.digests import payload_digest
from schemas.manifest import Bundles, FileEntry, MemberIndex
from teacher_cache.codec.bundles import as_record, bundle_bytes, write_bundle

BLOCK = 512


def member_name(key: str, signal: str) -> str:
    """Name of a sample's tar member."""
    return f"{key}.{signal}.arrow"


def member_bytes(payload_bytes: int) -> int:
    """Bytes of a member in the tar: header and padded payload."""
    return BLOCK + -(-payload_bytes // BLOCK) * BLOCK


def tar_bytes(payload_bytes: Sequence[int], bundles: Sequence[int] | None) -> int:
    """Size of a tar with these payloads; with ``bundles`` (samples per member), with these records."""
    if bundles is not None:
        ends = list(itertools.accumulate(bundles, initial=0))
        payload_bytes = [bundle_bytes(payload_bytes[first:end]) for first, end in itertools.pairwise(ends)]
    return 2 * BLOCK + sum(map(member_bytes, payload_bytes))


def checksum(payload: bytes) -> str:
    """xxh3-64 of a member's payload, 16 hex digits."""
    return xxhash.xxh3_64_hexdigest(payload)


def payload_problem(payload: bytes, member: MemberIndex, row: int) -> str:
    """Why this is not the payload of sample ``row`` of an index; '' if it is."""
    found, wanted = checksum(payload), member.checksums[row]
    if found != wanted:
        return (
            f"xxh3 of its {len(payload)} bytes is {found}, the index says {member.sizes[row]} bytes with {wanted}; "
            "restore the file from its origin"
        )
    if member.digests is not None and payload_digest(payload) != member.digest(row):
        return (
            f"sha256 of its {len(payload)} bytes begins with {payload_digest(payload).hex()}, the index says "
            f"{member.digest(row).hex()}, although the xxh3 matches: it was replaced deliberately; get the file from a "
            "source that you trust"
        )
    return ""


class TarWriter:
    """Writes samples sequentially to ``path``; ``index()`` returns their offsets."""

    def __init__(self, path: Path, signal: str, bundles: Sequence[int] | None = None) -> None:
        """``bundles``: number of samples in each member, in order; None: one member per sample."""
        self._signal = signal
        self._bundles = None if bundles is None else iter(bundles)
        self._waiting: list[tuple[str, bytes]] = []  # keys and records of the next bundle
        self._wanted = 0 if self._bundles is None else next(self._bundles, 0)
        self._written: list[tuple[int, int, int]] = []  # samples, offset and size of each bundle
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self._position = 0
        self._offsets: list[int] = []
        self._sizes: list[int] = []
        self._checksums: list[str] = []
        self._digests = bytearray()

    def add(self, key: str, payload: bytes) -> None:
        """Append one sample's payload (in a bundle, as a record). Raises OSError if the disk is full."""
        if self._bundles is None:
            self._note([self._member(key, payload)], [payload])
            return
        self._waiting.append((key, as_record(self._signal, payload)))
        if len(self._waiting) == self._wanted:
            self._write_bundle()
            self._wanted = next(self._bundles, 0)

    def _write_bundle(self) -> None:
        records = [record for _, record in self._waiting]
        bundle = write_bundle(records)
        offset = self._member(self._waiting[0][0], bundle.content)
        self._note([offset + start for start in bundle.starts], records)
        self._written.append((len(records), offset, len(bundle.content)))
        self._waiting.clear()

    def _member(self, key: str, content: bytes) -> int:
        """Write a member; returns the offset of its content."""
        header = tarfile.TarInfo(member_name(key, self._signal))
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._position
        self._write(content)
        self._write(bytes(-len(content) % BLOCK))
        return offset

    def _note(self, offsets: list[int], payloads: list[bytes]) -> None:
        self._offsets += offsets
        self._sizes += map(len, payloads)
        self._checksums += map(checksum, payloads)
        self._digests += b"".join(map(payload_digest, payloads))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._position += len(data)

    def index(self) -> MemberIndex:
        """The index of the closed file."""
        samples, offsets, sizes = ([bundle[i] for bundle in self._written] for i in range(3))
        return MemberIndex(
            file=FileEntry(bytes=self._position, sha256=self._sha256.hexdigest()),
            offsets=self._offsets,
            sizes=self._sizes,
            checksums=self._checksums,
            digests=bytes(self._digests),
            bundles=None if self._bundles is None else Bundles(samples=samples, offsets=offsets, sizes=sizes),
        )

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._waiting:
                    raise RuntimeError(f"incomplete bundle: {len(self._waiting)} of {self._wanted} samples were added")
                self._write(bytes(2 * BLOCK))
        finally:
            self._file.close()
