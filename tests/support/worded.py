"""Synthetic caches whose tokens are given pieces of text."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from schemas.cache_config import LogitsCapture
from support.synthetic import Pair, logits_sample, token_sample
from teacher_cache.records import TokenSample


def worded_sample(pieces: Sequence[str | bytes], ids: Sequence[int] | None = None, **names: str) -> TokenSample:
    """A sample whose token i is spelled ``pieces[i]``; ids count up unless given."""
    encoded = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
    ends = np.cumsum([len(piece) for piece in encoded])
    sample = token_sample(list(ids if ids is not None else range(len(pieces))), **names)
    return replace(
        sample,
        key=hashlib.sha256(repr((encoded, sample.key)).encode()).hexdigest()[:32],
        text=b"".join(encoded).decode(),
        byte_start=np.concatenate([[0], ends[:-1]]).astype(np.uint32),
        byte_end=ends.astype(np.uint32),
    )


def worded_pair(
    pieces: Sequence[str | bytes],
    vocab_size: int = 300,
    capture: LogitsCapture | None = None,
    seed: int = 0,
    **names: str,
) -> Pair:
    """Such a sample and random distributions."""
    sample = worded_sample(pieces, **names)
    logits_SV = np.random.default_rng(seed).normal(0, 3, (len(pieces), vocab_size))
    return sample, logits_sample(logits_SV, sample.input_ids, capture or LogitsCapture(k=8), sample.loss_mask)
