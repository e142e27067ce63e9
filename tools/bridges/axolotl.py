"""Axolotl's layout of pre-tokenised sequences with a teacher's top tokens, for its distillation plugin.

Derived from the public sources of axolotl-ai-cloud/axolotl: columns and padding from
src/axolotl/integrations/kd/collator.py, their contents from chat_template.py and collator_online_teacher.py there, row
alignment from kernels/liger.py; src/axolotl/utils/data/wrappers.py passes a data set with input_ids, attention_mask and
labels through unchanged.

Target row t is compared with the student's row t, as in our caches. Axolotl shifts labels itself, so ``labels[t + 1]``
is set where row t is in the loss mask. Axolotl's own loaders apply ``kd_temperature`` and renormalise over the stored
tokens on reading; here that happens on writing, and the mass outside the stored tokens is lost. Entries beyond a
nucleus, and rows outside the loss mask, are masked out, with the ids and values of Axolotl's own padding.

A cache holds text and tokens but no messages, so the layout for Axolotl's chat-template strategies (``logprobs`` beside
``messages``) is not written: those strategies tokenise again.
"""

import math

import numpy as np
import pyarrow as pa

from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.records import LogitsSample, TokenSample
from tools.bridges.layout import Pairs, TableLayout, every_row, learned_tokens
from tools.bridges.lists import lists, lists_of_lists

IGNORED = -100
PADDING = np.float32(-1e9)  # log-probability of a masked entry
SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("attention_mask", pa.list_(pa.int8())),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("target_token_ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("target_logprobs", pa.list_(pa.list_(pa.float32()))),
        pa.field("target_mask", pa.list_(pa.list_(pa.int8()))),
    ]
)


class AxolotlLayout(TableLayout):
    """Writer of Axolotl's layout."""

    name = "axolotl"
    pattern = "data/train-{number:05d}.parquet"

    def __init__(self, manifest: Manifest, temperature: float = 1.0) -> None:
        """``temperature``: Axolotl's ``kd_temperature``. Raises UserError unless it is positive and finite."""
        super().__init__(manifest)
        if not 0 < temperature < math.inf:
            raise UserError(f"--temperature: {temperature:g}, wanted a number above 0")
        self.temperature = temperature

    def batch(self, pairs: Pairs) -> pa.RecordBatch:
        """The rows of these samples."""
        targets = [self._targets(tokens, logits) for tokens, logits in pairs]
        ids, logprobs, mask = zip(*targets, strict=True)
        labels = []
        for tokens, _ in pairs:
            labels.append(np.where(learned_tokens(tokens), tokens.input_ids.astype(np.int32), np.int32(IGNORED)))
        columns = [
            lists([tokens.input_ids.astype(np.int32) for tokens, _ in pairs]),
            lists([np.ones(len(tokens.input_ids), np.int8) for tokens, _ in pairs]),
            lists(labels),
            lists_of_lists(ids),
            lists_of_lists(logprobs),
            lists_of_lists(mask),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def _targets(self, tokens: TokenSample, logits: LogitsSample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids int32, log-probabilities float32 and mask int8 [S, K]."""
        stored_PK = np.arange(logits.ids.shape[1]) < logits.counts[:, None]
        scaled_PK = logits.logprobs.astype(np.float64) / self.temperature
        scaled_PK -= np.logaddexp.reduce(scaled_PK, axis=1, keepdims=True)
        in_loss_PK = stored_PK & tokens.loss_mask[logits.positions, None]
        logprobs_PK = np.where(in_loss_PK, scaled_PK, PADDING).astype(np.float32)
        ids_PK = np.where(in_loss_PK, logits.ids, 0).astype(np.int32)
        return (
            every_row(logits, ids_PK, 0),
            every_row(logits, logprobs_PK, float(PADDING)),
            every_row(logits, in_loss_PK.astype(np.int8), 0),
        )

    def about(self) -> str:
        """The columns, and Axolotl's settings for reading them."""
        return (
            "In Axolotl's layout of sequences prepared for distillation. Row t of the targets predicts token t + 1, as "
            "Axolotl's loss compares them; `labels` are not shifted.\n\n"
            "- `input_ids`, `attention_mask`, `labels` (-100 at tokens outside the loss)\n"
            "- `target_token_ids`, `target_logprobs`: the teacher's likeliest tokens, in descending order, at "
            f"temperature {self.temperature:g} and normalised over these tokens: the mass of all others is dropped\n"
            "- `target_mask`: 1 where an entry is in the loss\n\n"
            "```yaml\nplugins:\n  - axolotl.integrations.kd.KDPlugin\nkd_trainer: true\n"
            f"kd_temperature: {self.temperature:g}\nkd_normalize_topk: true\nskip_prepare_dataset: true\ndatasets:\n"
            "  - path: this folder\n    type: completion\n    split: train\n```\n"
        )
