import threading

import pytest

from tools.side_by_side import THREADS, side_by_side


def test_results_come_in_order_and_several_are_under_way() -> None:
    together = threading.Barrier(THREADS, timeout=60)

    def square(n: int) -> int:
        together.wait()
        return n * n

    assert list(side_by_side(square, range(4 * THREADS))) == [n * n for n in range(4 * THREADS)]


def test_after_an_error_nothing_more_is_begun() -> None:
    begun: list[int] = []

    def fail(n: int) -> int:
        begun.append(n)
        if n == 3:
            raise ValueError(n)
        return n

    with pytest.raises(ValueError, match="3"):
        list(side_by_side(fail, range(10_000)))
    assert len(begun) < 3 + THREADS + 1
    begun.clear()
    with pytest.raises(ValueError, match="3"):
        list(side_by_side(fail, range(100), threads=1))
    assert begun == [0, 1, 2, 3]
