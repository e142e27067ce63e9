"""Are the final hidden states of a sample those of its stored entries? The output head tells."""

import numpy as np
import torch

from schemas.cache_config import FinalCapture
from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.output_head import OutputHead, rebuilt_error
from teacher_cache.records import LogitsSample
from teacher_cache.signals.hidden.capture import to_floats
from teacher_cache.signals.hidden.record import HiddenSample

MAX_CAPTURE_ERROR = 0.25  # nats; mean over rows of the rebuilt log-probability of the best token, when it is captured
MAX_STORED_ERROR = 0.5  # and when it is read
ROWS = 16  # of a stored sample, spread over it: each takes a product with the whole head


def final_problem(final: HiddenSample, logits: LogitsSample, head: OutputHead, capture: FinalCapture) -> str:
    """What is wrong, at some rows, or ''."""
    error = _rebuilt_error(final, logits, head, capture, ROWS)
    return "" if error <= MAX_STORED_ERROR else f"log-probabilities rebuilt from it are {error:.2g} nats off on average"


def check_rebuilt(
    final: HiddenSample, logits: LogitsSample, capture: FinalCapture, manifest: Manifest, head: OutputHead
) -> None:
    """Raise UserError if the final hidden states of a sequence and the head do not give the logits that were captured.

    So is an architecture found out whose logits are made in a way that ``OutputHead`` does not know.
    """
    error = _rebuilt_error(final, logits, head, capture, len(final.positions))
    if error > MAX_CAPTURE_ERROR:
        raise UserError(
            f"capture.final: the logits of a {manifest.teacher.architecture} cannot be rebuilt from its final hidden "
            f"state and output head (off by {error:.2g} nats on average); leave the signal out for this teacher"
        )


def _rebuilt_error(
    final: HiddenSample, logits: LogitsSample, head: OutputHead, capture: FinalCapture, most_rows: int
) -> float:
    """Mean |Δ log p|, nats, of the best tokens at up to ``most_rows`` of the rows that both have; 0 without any."""
    common, at_final, at_logits = np.intersect1d(
        final.positions, logits.positions, assume_unique=True, return_indices=True
    )
    if not len(common):
        return 0.0
    some = np.unique(np.linspace(0, len(common) - 1, min(most_rows, len(common))).astype(int))
    at_final, at_logits = at_final[some], at_logits[some]
    part = HiddenSample(**{name: values[at_final] for name, values in vars(final).items()})
    best_P, logprob_P = logits.ids[at_logits, 0], logits.logprobs[at_logits, 0]
    hidden_PD = to_floats(part, capture)[:, 0]
    return rebuilt_error(head, hidden_PD, torch.from_numpy(best_P), torch.from_numpy(logprob_P))
