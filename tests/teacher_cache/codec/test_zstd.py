"""The compressor and decompressor of compiled loops against those of the package."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zstandard

from teacher_cache.codec.compiled import compiled
from teacher_cache.codec.zstd import Decompressor, addresses, compress_blocks, decompress_into, decompressor

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


@pytest.mark.parametrize("level", [1, 3, 6, 19])
def test_blocks_are_those_of_the_packages_own_stream(level: int) -> None:
    rng = np.random.default_rng(level)
    parts = [rng.geometric(p, n).astype(np.uint8) for p, n in ((0.5, 300_000), (0.02, 7), (0.1, 0), (0.01, 140_000))]
    stream = zstandard.ZstdCompressor(level=level, write_checksum=False).compressobj(size=sum(map(len, parts)))
    wanted = [stream.compress(part.data) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for part in parts]
    found = compress_blocks(np.concatenate(parts), np.cumsum([len(part) for part in parts]), level)
    assert found == b"".join([*wanted, stream.flush()])


def test_noise_compresses_into_the_space_that_is_reserved() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 50_000).astype(np.uint8)
    frame = compress_blocks(noise, np.arange(1, len(noise) + 1, dtype=np.int64), 1)  # a block a byte
    assert zstandard.decompress(frame) == noise.tobytes()
