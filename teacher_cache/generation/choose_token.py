"""Draw a token from logits: temperature, top k, top p, in this order, in float64."""

import numpy as np
import xxhash

from schemas.generate_config import SamplingConfig


def choose(logits_V: np.ndarray, sampling: SamplingConfig, uniform: float) -> int:
    """The token at ``uniform``, in [0, 1), of the cumulative distribution over what top k and top p leave.

    Tokens are in falling order of their probability, equal ones by id. Temperature 0 takes the first of them.
    """
    if sampling.temperature == 0:
        return int(np.argmax(logits_V))
    scaled_V = logits_V.astype(np.float64) / sampling.temperature
    order_V = np.argsort(-scaled_V, kind="stable")
    if sampling.top_k:
        order_V = order_V[: sampling.top_k]
    weights_K = np.exp(scaled_V[order_V] - scaled_V[order_V[0]])
    cumulative_K = np.cumsum(weights_K)
    if sampling.top_p < 1:
        least = int(np.searchsorted(cumulative_K, sampling.top_p * cumulative_K[-1], side="left")) + 1
        cumulative_K = cumulative_K[:least]
    at = int(np.searchsorted(cumulative_K, uniform * cumulative_K[-1], side="right"))
    return int(order_V[min(at, len(cumulative_K) - 1)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a function of a reply's seed and a position in the reply."""
    return (xxhash.xxh3_64_intdigest(position.to_bytes(8, "little"), seed=seed) >> 11) / (1 << 53)
