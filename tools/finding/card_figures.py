"""A few figures of quality for a card, from some samples of a cache: cheap, and enough to see that it is sound."""

from collections.abc import Callable

import numpy as np

from schemas.manifest import Manifest
from teacher_cache.shards.reader import CacheReader


def figures(
    url: str, manifest: Manifest, samples: int, advance: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, float]:
    """Means over the rows of ``samples`` samples, spread evenly over the cache.

    Raises CorruptCacheError when one of them is damaged.
    """
    reader = CacheReader(url, ("tokens", "logits"), manifest)
    chosen = np.unique(np.linspace(0, len(reader) - 1, min(samples, len(reader))).astype(int))
    rows, stored, mass, best, right, likelihood, known = 0, 0, 0.0, 0.0, 0, 0.0, 0
    for done, position in enumerate(chosen.tolist(), 1):
        tokens, logits = reader.read_tokens(position), reader.read_logits(position)
        probabilities_PK = np.exp(logits.logprobs.astype(np.float64))
        probabilities_PK[np.arange(probabilities_PK.shape[1]) >= logits.counts[:, None]] = 0
        following = np.isfinite(logits.next_logprob)
        rows += len(logits.positions)
        stored += int(logits.counts.sum())
        mass += float(probabilities_PK.sum())
        best += float(probabilities_PK[:, 0].sum())
        right += int((logits.ids[following, 0] == tokens.input_ids[logits.positions[following] + 1]).sum())
        likelihood += float(logits.next_logprob[following].sum())
        known += int(following.sum())
        advance(done, len(chosen))
    if not rows or not known:
        return {}
    return {
        "samples read": float(len(chosen)),
        "rows read": float(rows),
        "entries a row": stored / rows,
        "probability of a row's entries together": mass / rows,
        "probability of the best entry": best / rows,
        "share of rows whose best entry came next": right / known,
        "perplexity of the text to the teacher": float(np.exp(-likelihood / known)),
    }
