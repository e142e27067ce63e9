"""The decompressor of compiled loops against that of the package."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard

from teacher_cache.codec.compiled import compiled
from teacher_cache.codec.zstd import Decompressor, addresses, decompress_into, decompressor

CONTENT = np.random.default_rng(0).integers(0, 9, 5000).astype(np.uint8)
FRAME = zstandard.compress(CONTENT.tobytes())


@compiled
def call(zstd: Decompressor, address: int, n_bytes: int, target: np.ndarray) -> int:
    return decompress_into(zstd.function, zstd.context, address, n_bytes, target)


def decompressed(frame: bytes, target: np.ndarray) -> int:
    return call(decompressor(), addresses([memoryview(frame)])[0], len(frame), target)


@pytest.mark.parametrize("writeable", [True, False])
def test_the_content_is_written(writeable: bool) -> None:
    target = np.zeros(5000, np.uint8)
    target.flags.writeable = writeable
    assert decompressed(FRAME, target) == 5000
    np.testing.assert_array_equal(target, CONTENT)


def test_nothing_is_written_beyond_the_target() -> None:
    for size in (0, 1, 4999):
        guarded = np.full(6000, 77, np.uint8)
        assert decompressed(FRAME, guarded[:size]) < 0
        assert (guarded[size:] == 77).all()


def test_a_larger_target_returns_the_number_of_bytes_written() -> None:
    assert decompressed(FRAME, np.empty(6000, np.uint8)) == 5000


def test_a_broken_frame_gives_an_error_or_no_more_than_fits() -> None:
    for place in range(len(FRAME)):
        broken = bytearray(FRAME)
        broken[place] ^= 255
        guarded = np.full(5100, 77, np.uint8)
        assert decompressed(bytes(broken), guarded[:5000]) <= 5000
        assert (guarded[5000:] == 77).all()
    for cut in (0, 3, len(FRAME) - 1):
        assert decompressed(FRAME[:cut], np.empty(5000, np.uint8)) <= 0


def test_the_next_frame_after_an_error_decompresses() -> None:
    assert decompressed(FRAME[:50], np.empty(5000, np.uint8)) < 0
    assert decompressed(FRAME, np.empty(5000, np.uint8)) == 5000


def test_threads_have_contexts_of_their_own() -> None:
    with ThreadPoolExecutor(4) as pool:
        contexts = [decompressor().context, *(future.result().context for future in [pool.submit(decompressor)])]
        assert len(set(contexts)) == 2
        targets = [np.zeros(5000, np.uint8) for _ in range(200)]
        assert set(pool.map(lambda target: decompressed(FRAME, target), targets)) == {5000}
    assert all((target == CONTENT).all() for target in targets)
    assert decompressor() == decompressor()
