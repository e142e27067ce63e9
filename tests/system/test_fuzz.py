"""Random changes to a cache's files: each is found or harmless, and none hangs or takes much memory.

The golden caches of the first and the present format, which have every signal, are changed in one file at a time. A
change is harmless when every array is what it was. It is found when opening, reading or verifying the cache raises the
errors that are meant for it.
"""

import json
import resource
import shutil
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import CorruptCacheError, UserError
from support.amount import amount
from support.golden import GOLDEN, WITH_CHATS, array_digests
from tools.checking.verify import verify

CHANGES = amount(700, full=2000)
MEASURED = amount(5, full=1)  # of so many changes the memory of one is measured, which takes four times as long
MAX_SECONDS = 20  # of one change, on a busy machine
MAX_BYTES = 8 << 20  # Python's and numpy's allocations; the whole cache is 0.2 MB
CACHES = (GOLDEN, WITH_CHATS)
Change = Callable[[bytes, np.random.Generator], bytes]


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bits anywhere."""
    changed = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(0, len(data))]


def extend(data: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 2000)))


def overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    """A stretch of zeros, ones or noise."""
    start = int(rng.integers(0, len(data)))
    size = int(rng.integers(1, 600))
    stretch = (bytes(size), b"\xff" * size, rng.bytes(size))[rng.integers(3)]
    return data[:start] + stretch + data[start + size :]


def swap_members(data: bytes, rng: np.random.Generator) -> bytes:
    """Two stretches of 512 bytes, as members of a tar are aligned."""
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    a, b = rng.integers(0, len(blocks), 2)
    blocks[a], blocks[b] = blocks[b], blocks[a]
    return b"".join(blocks)


def huge_number(data: bytes, rng: np.random.Generator) -> bytes:
    """A number of a JSON file, or eight bytes of any other, becomes huge, negative or wrong by one."""
    try:
        tree = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError):
        start = int(rng.integers(0, max(1, len(data) - 8)))
        word = int(rng.choice([2**31 - 1, 2**32, 2**40, 2**63 - 1])).to_bytes(8, "little")
        return data[:start] + word + data[start + 8 :]
    numbers = list(_numbers(tree))
    parent, place = numbers[rng.integers(len(numbers))]
    parent[place] = [2**31, 2**53, 10**30, -1, parent[place] + 1][rng.integers(5)]
    return json.dumps(tree, indent=1).encode()


def _numbers(tree: object) -> Iterator[tuple[list | dict, object]]:
    if isinstance(tree, dict | list):
        for place, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if isinstance(value, int) and not isinstance(value, bool):
                yield tree, place
            else:
                yield from _numbers(value)


def _other_file(data: bytes, rng: np.random.Generator) -> bytes:
    """The content of another file of the cache."""
    files = sorted(path for path in WITH_CHATS.rglob("*") if path.is_file())
    return files[rng.integers(len(files))].read_bytes()


KINDS: list[Change] = [flip_bits, truncate, extend, overwrite, swap_members, huge_number, _other_file]


@pytest.fixture(scope="module", autouse=True)
def warmed_up() -> None:
    """Modules are imported and loops compiled before memory is measured."""
    for golden in CACHES:
        array_digests(golden)
        verify(str(golden))


@pytest.fixture
def few_bytes() -> Iterator[None]:
    """A bound on the process' memory, so that a huge allocation fails instead of being served lazily."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("golden", CACHES, ids=lambda golden: golden.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.strip("_"))
def test_every_change_is_found_or_harmless(tmp_path: Path, few_bytes: None, kind: Change, golden: Path) -> None:
    expected = json.loads(golden.with_name(f"{golden.name}.json").read_text())
    cache = tmp_path / "cache"
    shutil.copytree(golden, cache)
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    rng = np.random.default_rng(len(kind.__name__))
    found = 0
    for number in range(CHANGES // len(KINDS) // len(CACHES) + 1):
        path = files[rng.integers(len(files))]
        sound = path.read_bytes()
        path.write_bytes(kind(sound, rng))
        started = time.monotonic()
        with little_memory() if number % MEASURED == 0 else nullcontext():
            found += _is_found(cache, expected, f"{kind.__name__} {number} of {path.name}")
        assert time.monotonic() - started < MAX_SECONDS
        path.write_bytes(sound)
    assert found > 0.5 * CHANGES / len(KINDS) / len(CACHES), "most changes matter, or nothing was tested"


def _is_found(cache: Path, expected: dict[str, str], what: str) -> bool:
    """Whether reading or verifying finds the change; fails when it is neither found nor harmless."""
    try:
        digests = array_digests(cache)
        read = True
    except (CorruptCacheError, UserError):
        read = False
    try:
        problems = verify(str(cache)).problems
    except (CorruptCacheError, UserError) as error:
        problems = [str(error)]
    if read:
        assert digests == expected, f"{what}: silently wrong"
    else:
        assert problems, f"{what}: reading fails, and verify finds nothing"
    return bool(problems)


def test_a_tar_is_not_trusted_with_paths(tmp_path: Path) -> None:
    """Members are read at the index's offsets; their names are never used."""
    cache = tmp_path / "cache"
    shutil.copytree(GOLDEN, cache)
    path = cache / "shard-000000.logits.tar"
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        name = tar.getnames()[0]
    path.write_bytes(data.replace(name.encode(), b"/../../" + name.encode()[7:], 1))
    assert array_digests(cache) == array_digests(GOLDEN)
    assert verify(str(cache)).problems
