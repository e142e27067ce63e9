import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.run_report.envelopes import envelope
from trainer.run_report.run_reading import Series


@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_every_value_is_within_the_envelope_of_its_stretch(n: int, most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.unique(rng.integers(0, 10 * n, n))
    values = rng.normal(size=len(steps))
    found = envelope(Series(steps, values), int(steps[0]), int(steps[-1]), most)
    assert len(found.steps) <= max(most, 1)
    assert found.steps[-1] == steps[-1]
    assert (np.diff(found.steps) > 0).all()
    place = np.searchsorted(found.steps, steps)
    assert (found.lows[place] <= values).all()
    assert (values <= found.highs[place]).all()
    assert (found.highs.max(), found.lows.min()) == (values.max(), values.min())
    for i in range(len(found.steps)):
        np.testing.assert_allclose(found.means[i], values[place == i].mean())
    assert found.is_exact == (len(steps) <= most or len(found.steps) == len(steps))


def test_a_spike_of_one_step_survives() -> None:
    values = np.ones(100_000)
    values[77_776] = 55.0
    found = envelope(Series(np.arange(1, 100_001), values), 1, 100_000, 400)
    assert len(found.steps) == 400
    assert found.highs.max() == 55.0
    assert found.means.max() < 2
