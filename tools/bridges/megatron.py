"""Megatron-LM's indexed data sets: tokens, and beside them the teacher's rows.

Four data sets hold the sequences in the same order, each sequence a document. Each token has one value in ``tokens``
and ``loss_mask``, and K in ``target_ids`` and ``target_logprobs``, so a piece of a sequence that a Megatron data set
cuts at token o with n tokens has its targets from value K·o, K·n values. Rows that are not stored take K values, too.

Row t predicts token t + 1, as in our caches, and as Megatron's ``GPTDataset`` pairs its tokens, labels and loss mask.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from teacher_cache.records import LogitsSample
from tools.bridges.indexed_dataset import IndexedDataset
from tools.bridges.layout import ABSENT, Layout, Pairs, every_row

SMALL_VOCABULARY = 65_500  # below it Megatron stores tokens as uint16


class MegatronLayout(Layout):
    """Writer of Megatron's layout."""

    name = "megatron"

    def write(self, batches: Iterable[Pairs], folder: Path, tokens_per_file: int) -> int:
        """Write the four data sets, two files each."""
        small = self.manifest.teacher.vocab_size < SMALL_VOCABULARY
        dtypes: dict[str, type[np.generic]] = {
            "tokens": np.uint16 if small else np.int32,
            "loss_mask": np.uint8,
            "target_ids": np.int32,
            "target_logprobs": np.float32,
        }
        with ExitStack() as stack:
            files = {name: stack.enter_context(IndexedDataset(folder / name, dtype)) for name, dtype in dtypes.items()}
            for pairs in batches:
                files["tokens"].add([tokens.input_ids for tokens, _ in pairs])
                files["loss_mask"].add([tokens.loss_mask for tokens, _ in pairs])
                files["target_ids"].add([every_row(logits, logits.ids, 0) for _, logits in pairs])
                files["target_logprobs"].add([_logprobs(logits) for _, logits in pairs])
        return 2 * len(dtypes)

    def about(self) -> str:
        """The data sets, and how to read them."""
        k = self.manifest.capture.logits.k
        return (
            "Indexed data sets of Megatron-LM (`.bin` and `.idx`), with the same sequences in the same order, each a "
            "document. Row t predicts token t + 1.\n\n"
            "- `tokens`: token ids; for Megatron's `--data-path`, too\n"
            "- `loss_mask`: 1 at rows whose prediction is to be learned\n"
            f"- `target_ids`, `target_logprobs`: {k} values for each token, the teacher's likeliest next tokens in "
            "descending order and their log-probabilities in nats, at temperature 1. Entries that are not stored have "
            f"id 0 and log-probability {ABSENT:g}\n\n"
            "```python\nfrom megatron.core.datasets.indexed_dataset import IndexedDataset\n\n"
            'tokens, logprobs = IndexedDataset("tokens"), IndexedDataset("target_logprobs")\n'
            f"row_of_each_token = logprobs[0].reshape(-1, {k})\n"
            "piece = tokens.get(0, offset=1, length=4)\n"
            f"its_rows = logprobs.get(0, offset=1 * {k}, length=4 * {k}).reshape(-1, {k})\n```\n"
        )


def _logprobs(logits: LogitsSample) -> np.ndarray:
    """Log-probabilities of all rows, float32 [S, K]; finite, since losses multiply by probabilities of 0."""
    return every_row(logits, np.maximum(logits.logprobs, ABSENT), float(ABSENT))
