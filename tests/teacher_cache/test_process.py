import contextlib
import gc
import os

import psutil

from teacher_cache.process import paused_garbage_collection, peak_memory_bytes, usable_cores


def test_the_peak_is_in_bytes_and_never_below_what_is_resident() -> None:
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    resident = psutil.Process().memory_info().rss
    assert 0.99 * resident <= peak_memory_bytes() <= psutil.virtual_memory().total


def test_a_pause_of_garbage_collection_ends_also_with_an_error() -> None:
    with contextlib.suppress(ValueError), paused_garbage_collection():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    gc.disable()
    try:
        with paused_garbage_collection():
            pass
        assert not gc.isenabled(), "as it was"
    finally:
        gc.enable()


def test_usable_cores_are_those_the_process_is_bound_to() -> None:
    bound = os.sched_getaffinity(0)
    assert usable_cores() == len(bound)
    os.sched_setaffinity(0, {min(bound)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, bound)
