import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.packing import pack


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(64, 200))
def test_packing_fits_and_loses_nothing(lengths: list[int], capacity: int) -> None:
    rows = pack(np.array(lengths), capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    # any two rows together are fuller than one: else best fit would have merged them
    sizes = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) < 2 or sizes[0] + sizes[1] > capacity


def test_packing_leaves_little_padding() -> None:
    lengths = np.random.default_rng(1).integers(20, 600, 4000)
    assert lengths.sum() / (len(pack(lengths, 2048)) * 2048) > 0.98
