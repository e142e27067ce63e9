"""Check that a tar's headers agree with its index. Our readers use the index, all others the headers.

Other readers would see different data, or write outside the target folder, if members had other names, were links, or
were not all listed in the index.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from schemas.errors import CorruptCacheError
from schemas.manifest import FileEntry, MemberIndex
from teacher_cache.codec.bundles import bundle_places
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import BLOCK, member_name

READ_BYTES = 1 << 24  # a multiple of BLOCK, so that no header spans two reads
NAME, SIZE, SUM, TYPE, LINK, MAGIC, PREFIX = (  # header fields of POSIX.1-1988's ustar interchange format
    slice(0, 100),
    slice(124, 136),
    slice(148, 156),
    156,
    slice(157, 257),
    slice(257, 262),
    slice(345, 500),
)
_SPACE, _ZERO = ord(" "), ord("0")


def check_file(storage: Storage, name: str, entry: FileEntry) -> None:
    """Raise CorruptCacheError unless a file has the size and sha256 of ``entry``. Memory: READ_BYTES."""
    for _ in _checked_blocks(storage, name, entry):
        pass


class _Members(NamedTuple):
    """Expected members of a tar, in order."""

    names: list[str]
    offsets_N: np.ndarray  # int64; of their data
    sizes_N: np.ndarray  # int64

    @staticmethod
    def of(signal: str, keys: list[str], member: MemberIndex) -> "_Members":
        """From a tar's index; a bundle is named after its first sample."""
        if member.bundles is None:
            firsts, offsets, sizes = keys, member.offsets, member.sizes
        else:
            starts = itertools.accumulate(member.bundles.samples[:-1], initial=0)
            firsts, offsets, sizes = [keys[i] for i in starts], member.bundles.offsets, member.bundles.sizes
        names = [member_name(key, signal) for key in firsts]
        return _Members(names, np.array(offsets, np.int64), np.array(sizes, np.int64))

    @property
    def end(self) -> int:
        return int(self.offsets_N[-1]) + _padded(int(self.sizes_N[-1]))


def check_tar(storage: Storage, name: str, signal: str, keys: list[str], member: MemberIndex) -> None:
    """Raise CorruptCacheError unless a tar has the index's sha256 and holds exactly its members."""
    members = _Members.of(signal, keys, member)
    problem = _layout_problem(members, member.file.bytes)
    headers_N = members.offsets_N - BLOCK
    for start, data in _checked_blocks(storage, name, member.file):
        if problem is None:
            first, last = np.searchsorted(headers_N, [start, start + len(data)]).tolist()
            blocks_NB = data[: len(data) // BLOCK * BLOCK].reshape(-1, BLOCK)[(headers_N[first:last] - start) // BLOCK]
            problem = _header_problem(blocks_NB, members.names[first:last], members.sizes_N[first:last])
        if problem is None and data[max(0, members.end - start) :].any():
            problem = "it has data after its last member"
    problem = problem or _bundle_problem(keys, member, partial(storage.read_range, name))
    _refuse(storage.where(name), problem)


def check_headers(path: Path, where: str, signal: str, keys: list[str], member: MemberIndex) -> None:
    """As ``check_tar`` for a local file whose sha256 was checked: reads only headers, bundles, and the file's end."""
    members = _Members.of(signal, keys, member)
    problem = _layout_problem(members, member.file.bytes)
    if problem is None:
        data = np.memmap(path, np.uint8, "r")
        blocks_NB = data[: len(data) // BLOCK * BLOCK].reshape(-1, BLOCK)
        problem = _header_problem(blocks_NB[members.offsets_N // BLOCK - 1], members.names, members.sizes_N)
        if problem is None and data[members.end :].any():
            problem = "it has data after its last member"
        problem = problem or _bundle_problem(keys, member, lambda start, size: bytes(data[start : start + size]))
    _refuse(where, problem)


def _refuse(where: str, problem: str | None) -> None:
    if problem is not None:
        raise CorruptCacheError(f"{where}: {problem}; readers of plain tars would see other data than the index lists")


def _bundle_problem(keys: list[str], member: MemberIndex, read: Callable[[int, int], bytes]) -> str | None:
    """First bundle whose Arrow rows differ from the index, as a message; ``read(start, size)``: bytes of the tar."""
    if member.bundles is None:
        return None
    first = 0
    for n, offset, size in zip(member.bundles.samples, member.bundles.offsets, member.bundles.sizes, strict=True):
        try:
            found = [(offset + start, n_bytes) for start, n_bytes in bundle_places(read(offset, size))]
        except CorruptCacheError as error:
            return f"the bundle of sample {keys[first]}: {error}"
        rows = slice(first, first + n)
        if found != list(zip(member.offsets[rows], member.sizes[rows], strict=True)):
            return f"the bundle of sample {keys[first]} does not have its records where the index lists them"
        first += n
    return None


def _checked_blocks(storage: Storage, name: str, entry: FileEntry) -> Iterator[tuple[int, np.ndarray]]:
    """Offset and content (uint8) of a file's blocks, in order; CorruptCacheError if it is not ``entry``'s."""
    where, digest = storage.where(name), hashlib.sha256()
    for start in range(0, entry.bytes, READ_BYTES):
        wanted = min(READ_BYTES, entry.bytes - start)
        data = storage.read_range(name, start, wanted)
        if len(data) != wanted:
            raise CorruptCacheError(f"{where}: {start + len(data)} bytes, the manifest says {entry.bytes}")
        digest.update(data)
        yield start, np.frombuffer(data, np.uint8)
    if digest.hexdigest() != entry.sha256:
        raise CorruptCacheError(f"{where}: sha256 is {digest.hexdigest()}, the manifest says {entry.sha256}")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _layout_problem(members: _Members, file_bytes: int) -> str | None:
    """Message unless members are contiguous from the first byte on and two blocks end the file."""
    padded_N = -(-members.sizes_N // BLOCK) * BLOCK
    ends_N = np.cumsum(BLOCK + padded_N)
    wrong_N = members.offsets_N != ends_N - padded_N
    if wrong_N.any():
        return f"sample {_key(members.names[int(wrong_N.argmax())])} does not begin where the one before it ends"
    if file_bytes < int(ends_N[-1]) + 2 * BLOCK:
        return "the two blocks that end a tar are missing"
    return None


def _key(name: str) -> str:
    return name.partition(".")[0]


def _header_problem(blocks_NB: np.ndarray, names: list[str], sizes_N: np.ndarray) -> str | None:
    """Message on the first wrong header of these members, uint8 [N, 512]."""
    if not names:
        return None
    names_NB = np.array([name.encode() for name in names], "S100").view(np.uint8).reshape(-1, 100)
    sums_N = blocks_NB.sum(axis=1, dtype=np.int64) - blocks_NB[:, SUM].sum(axis=1, dtype=np.int64) + 8 * _SPACE
    checks = {
        "has another name in the tar": (blocks_NB[:, NAME] != names_NB).any(axis=1) | blocks_NB[:, PREFIX].any(axis=1),
        "is not a plain file in the tar": ~np.isin(blocks_NB[:, TYPE], (0, _ZERO)) | blocks_NB[:, LINK].any(axis=1),
        "has another size in the tar": _octal(blocks_NB[:, SIZE], 11) != sizes_N,
        "has a header with a wrong checksum or form": (
            (_octal(blocks_NB[:, SUM], 6) != sums_N)
            | (blocks_NB[:, MAGIC] != np.frombuffer(b"ustar", np.uint8)).any(axis=1)
        ),
    }
    for problem, wrong_N in checks.items():
        if wrong_N.any():
            return f"sample {_key(names[int(wrong_N.argmax())])} {problem}"
    return None


def _octal(field_NB: np.ndarray, digits: int) -> np.ndarray:
    """Octal numbers of ``digits`` digits, int64 [N]; -1 where a field is not one."""
    values_ND = field_NB[:, :digits].astype(np.int64) - _ZERO
    sound_N = ((values_ND >= 0) & (values_ND < 8)).all(axis=1) & np.isin(field_NB[:, digits], (0, _SPACE))
    return np.where(sound_N, values_ND @ (8 ** np.arange(digits)[::-1]), -1)
