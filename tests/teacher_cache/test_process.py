import psutil

from teacher_cache.process import peak_memory_bytes


def test_the_peak_is_in_bytes_and_never_below_what_is_resident() -> None:
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    resident = psutil.Process().memory_info().rss
    assert 0.99 * resident <= peak_memory_bytes() <= psutil.virtual_memory().total
