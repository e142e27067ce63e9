"""Check final hidden states: applied to them, the output head must reproduce the stored entries."""

import numpy as np
import torch

from schemas.cache_config import FinalCapture
from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.output_head import OutputHead, rebuilt_error
from teacher_cache.records import LogitsSample
from teacher_cache.signals.hidden.capture import to_floats
from teacher_cache.signals.hidden.record import HiddenSample

MAX_CAPTURE_ERROR = 0.25  # nats; mean |error| of the likeliest token's rebuilt log-probability, at capture
MAX_STORED_ERROR = 0.5  # nats; likewise for stored samples
ROWS = 16  # rows checked per stored sample, spread over it: each costs a product with the whole head


def final_problem(final: HiddenSample, logits: LogitsSample, head: OutputHead, capture: FinalCapture) -> str:
    """Describe final hidden states that disagree with the stored entries; '' if they agree."""
    error = _rebuilt_error(final, logits, head, capture, ROWS)
    return (
        "" if error <= MAX_STORED_ERROR else f"log-probabilities rebuilt from it are off by {error:.2g} nats on average"
    )


def check_rebuilt(
    final: HiddenSample, logits: LogitsSample, capture: FinalCapture, manifest: Manifest, head: OutputHead
) -> None:
    """Raise UserError if the head does not reproduce a sequence's captured logits from its final hidden states.

    This detects architectures that compute logits in a way ``OutputHead`` does not implement.
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
    """Mean |Δ log p| (nats) of the likeliest token over up to ``most_rows`` common rows; 0 if there are none."""
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
