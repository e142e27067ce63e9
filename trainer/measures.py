"""What is measured of a student at rows of logits: sums over rows, and the means of these sums."""

import math
from collections.abc import Callable

import torch

from schemas.errors import UserError
from trainer.losses.targets import Target
from trainer.losses.teacher_rows import TeacherRows
from trainer.losses.tla import tla_
from trainer.sample_sums import SampleSums

CONFIDENCE_BINS = 15
MEANS = {  # and the rows that each is the mean over
    "kl": "with_teacher",
    "cross_entropy": "tokens",
    "top1_agreement": "with_teacher",
    "teacher_cross_entropy": "with_next",
}
SUMS = (*MEANS, "tokens", "with_teacher", "with_next", "bytes")


class Measures:
    """Measures over the rows that are added.

    - ``kl`` (teacher ‖ student at temperature 1, nats: exact for a dense target, else a lower bound with one bucket for
      all other tokens) and ``top1_agreement`` (share of rows where the student's best token is the teacher's), over the
      rows with a distribution of the teacher. For a student with the teacher's tokenizer those are all rows; with
      another one ``tokens_with_teacher`` is their number, where it differs from ``tokens``.
    - ``cross_entropy`` (nats), ``perplexity``, ``calibration_error`` (see ``Calibration``) and ``tokens``: all rows.
    - ``bits_per_byte``: Σ -log2 q(next token) over all rows / Σ bytes of these tokens. It compares students of
      different tokenizers on the same text. A stop token has no bytes, but its bits count. Left out where the tokens'
      bytes are not known, or are none.
    - ``teacher_cross_entropy`` (nats): over the rows where the teacher's probability of the next token is known; left
      out if there are none.
    """

    def __init__(self, token_bytes_V: torch.Tensor | None = None, by_sample: SampleSums | None = None) -> None:
        """token_bytes_V: bytes of each token, integer [V], on the device of the rows; tokens beyond it have none.

        by_sample: to which what is added to the sums is added, too, sample by sample.
        """
        self._by_sample = by_sample
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64)
        self.calibration = Calibration()
        self._bytes_V = None if token_bytes_V is None else torch.nn.functional.pad(token_bytes_V, (0, 1))

    def add(self, logits_nV: torch.Tensor, rows: TeacherRows, target: Target, chunk: slice) -> None:
        """Add a chunk of the rows. logits_nV: the student's at the chunk; overwritten. target: of all rows."""
        next_ids_n = rows.next_ids_N[chunk].long()
        best_n = logits_nV.argmax(dim=-1)
        log_z_n = torch.logsumexp(logits_nV, dim=-1)
        cross_entropy_n = log_z_n - logits_nV.gather(1, next_ids_n[:, None]).squeeze(1)
        self.calibration.add((logits_nV.amax(dim=-1) - log_z_n).exp(), best_n == next_ids_n)
        agrees_n = best_n == rows.ids_NK[chunk, 0]
        with_teacher_n = rows.logprobs_NK[chunk, 0] > -torch.inf
        by_teacher_n = -rows.next_logprob_N[chunk]
        with_next_n = ~by_teacher_n.isnan()
        kl_n, _ = tla_(logits_nV, target.rows(chunk), temperature=1.0)
        each = {
            "kl": kl_n.masked_fill(~with_teacher_n, 0),
            "cross_entropy": cross_entropy_n,
            "top1_agreement": agrees_n & with_teacher_n,
            "teacher_cross_entropy": by_teacher_n.masked_fill(~with_next_n, 0),
            "tokens": torch.ones_like(with_teacher_n),
            "with_teacher": with_teacher_n,
            "with_next": with_next_n,
            "bytes": torch.zeros_like(next_ids_n) if self._bytes_V is None else take_bytes(self._bytes_V, next_ids_n),
        }
        self.sums += torch.stack([each[name].sum(dtype=torch.float64) for name in SUMS]).cpu()
        if self._by_sample is not None:
            self._by_sample.add(each, chunk)

    def reduce(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Add up over ranks. reduce: sums a float64 tensor over ranks."""
        self.sums, self.calibration.sums = reduce(self.sums), reduce(self.calibration.sums)

    def result(self) -> dict[str, float]:
        """The measures. Raises UserError if there are no rows, or none with a distribution of the teacher."""
        sums = dict(zip(SUMS, self.sums.tolist(), strict=True))
        tokens, with_teacher = int(sums["tokens"]), int(sums["with_teacher"])
        if tokens == 0:
            raise UserError("nothing to evaluate: loss_mask is False at every token of these samples")
        if with_teacher == 0:
            raise UserError(
                f"nothing to compare with the teacher: none of the {tokens} tokens in the loss mask has a distribution "
                "of the teacher; evaluate more samples"
            )
        found: dict[str, float] = {name: sums[name] / sums[rows] for name, rows in MEANS.items() if sums[rows]}
        found["perplexity"] = float(torch.tensor(found["cross_entropy"], dtype=torch.float64).exp())
        if sums["bytes"]:
            found["bits_per_byte"] = sums["cross_entropy"] / math.log(2) / sums["bytes"]
        found["calibration_error"] = self.calibration.error()
        found["tokens"] = tokens
        return found if with_teacher == tokens else found | {"tokens_with_teacher": with_teacher}


def take_bytes(bytes_V: torch.Tensor, ids_n: torch.Tensor) -> torch.Tensor:
    """Bytes of tokens, [n]; ids beyond the table have those of its last entry."""
    return bytes_V[ids_n.clamp(max=len(bytes_V) - 1)]


class Calibration:
    """Expected calibration error of the student's best token (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    Rows are binned by the best token's probability, in equal widths. The error is Σ over bins of (bin's share of rows)
    · |mean probability − accuracy|, accuracy against the realised next token.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(CONFIDENCE_BINS, 3, dtype=torch.float64)  # confidence, right, rows

    def add(self, confidence_n: torch.Tensor, right_n: torch.Tensor) -> None:
        """Add rows: probability of the best token, and whether it is the realised one."""
        bins_n = (confidence_n * CONFIDENCE_BINS).long().clamp(max=CONFIDENCE_BINS - 1).cpu()
        rows_n3 = torch.stack([confidence_n, right_n.float(), torch.ones_like(confidence_n)], dim=1)
        self.sums.index_add_(0, bins_n, rows_n3.double().cpu())

    def error(self) -> float:
        """The error over all rows that were added."""
        return float((self.sums[:, 0] - self.sums[:, 1]).abs().sum() / self.sums[:, 2].sum())
