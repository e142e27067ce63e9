from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.matrix.statistics.holm import holm


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_it_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """A hypothesis falls when every set of hypotheses that holds it does, each by the smallest p times its size."""
    everything = range(len(p_values))
    sets = [chosen for size in everything for chosen in combinations(everything, size + 1)]
    worst = [
        max(min(1.0, len(chosen) * min(p_values[i] for i in chosen)) for chosen in sets if index in chosen)
        for index in everything
    ]
    assert holm(p_values) == pytest.approx(worst)


def test_none_and_one() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
