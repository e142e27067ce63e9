"""The unbiased estimator of pass@k."""

import math


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The probability that of k texts, drawn from ``samples`` of which some ``passed``, at least one passes.

    1 - C(n - c, k) / C(n, k), as a product that does not overflow (arXiv 2107.03374, section 2.1).
    """
    if samples - passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - passed + 1, samples + 1))
