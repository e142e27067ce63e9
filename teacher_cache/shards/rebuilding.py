"""Check a sample's final hidden states against its stored entries, by applying the output head to some rows."""

import numpy as np
import torch

from schemas.cache_config import FinalCapture
from teacher_cache.output_head import OutputHead, rebuilt_error
from teacher_cache.records import HiddenSample, LogitsSample
from teacher_cache.signals.hidden import to_floats

ROWS = 16  # per sample, evenly spaced: each costs a product with the whole output head
LARGEST = 0.5  # nats, mean over rows: twice the tolerance when a cache is written


def final_problem(final: HiddenSample, logits: LogitsSample, head: OutputHead, capture: FinalCapture) -> str:
    """Description of the mismatch, or ''."""
    common, at_final, at_logits = np.intersect1d(
        final.positions, logits.positions, assume_unique=True, return_indices=True
    )
    if not len(common):
        return ""
    some = np.unique(np.linspace(0, len(common) - 1, ROWS).astype(int))
    at_final, at_logits = at_final[some], at_logits[some]
    part = HiddenSample(**{name: values[at_final] for name, values in vars(final).items()})
    best_P, logprob_P = logits.ids[at_logits, 0], logits.logprobs[at_logits, 0]
    hidden_PD = to_floats(part, capture)[:, 0]
    error = rebuilt_error(head, hidden_PD, torch.from_numpy(best_P), torch.from_numpy(logprob_P))
    return "" if error <= LARGEST else f"log-probabilities rebuilt from it are {error:.2g} nats off on average"
