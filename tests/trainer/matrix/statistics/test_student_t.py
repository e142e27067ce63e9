import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.matrix.statistics.student_t import critical, two_sided_p


@given(st.floats(0, 50))
def test_one_two_and_four_degrees_of_freedom_have_closed_forms(t: float) -> None:
    assert two_sided_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, abs=1e-12)
    assert two_sided_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-12)
    x = t / math.sqrt(4 + t * t)
    assert two_sided_p(t, 4) == pytest.approx(1 - 1.5 * (x - x**3 / 3), abs=1e-12)


@pytest.mark.parametrize("t", [0.3, 1.0, 1.96, 4.0, 8.0, 60.0])
def test_many_degrees_of_freedom_are_normal(t: float) -> None:
    normal = 2 * NormalDist().cdf(-t)
    assert two_sided_p(t, math.inf) == pytest.approx(normal, abs=1e-15)
    assert two_sided_p(t, 9e6) == pytest.approx(normal, abs=1e-7)
    assert two_sided_p(t, 1000.5) == pytest.approx(normal, abs=1e-3)


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [
        (0.05, 1, 12.7062),
        (0.05, 2, 4.3027),
        (0.05, 4, 2.7764),
        (0.01, 10, 3.1693),
        (0.05, 30, 2.0423),
        (0.4, 7, 0.8960),
    ],
)
def test_printed_tables(p: float, df: float, t: float) -> None:
    assert critical(p, df) == pytest.approx(t, abs=5e-5)


@given(st.floats(1e-5, 1), st.floats(1, 1e5))
def test_the_critical_value_has_its_tail(p: float, df: float) -> None:
    assert two_sided_p(critical(p, df), df) == pytest.approx(p, abs=2e-9)


def test_a_sign_does_not_matter() -> None:
    assert two_sided_p(-2.1, 9) == two_sided_p(2.1, 9)
