"""DistillKit's layout of captured teachers: Parquet of bit-packed ids and compressed log-probabilities.

Derived from the public sources of arcee-ai/DistillKit: columns from distillkit/sample_common.py
(``compressed_logit_schema``), row alignment from distillkit/sample_logits_vllm.py, bytes from
distillkit/compression/bitpack.py, config.py and monotonic_logprobs.py, masks from distillkit/trainer.py, packed rows
from distillkit/pack_logits.py. A row of the data set is a sequence of S tokens:

- ``input_ids``: list of u64.
- ``compressed_logprobs``: for each token row t the bytes of its k log-probabilities in descending order. Their encoding
  is set in ``compression_config.yaml``: ``exact_k`` floats; polynomial coefficients for the others; residuals in bins,
  each a scale and integers of a few bits; with ``delta_encoding`` all of these are differences along the row.
- ``bytepacked_indices``: k ids of ceil(log2 d) bits each, most significant bit first, padded to whole bytes.

Row t predicts token t + 1, as in our caches. DistillKit writes S - 1 rows, and truncates ``input_ids`` to match when
packing. With an optional ``labels`` column, its KL skips row t where ``labels[t]`` is negative, and its cross-entropy
skips token t.

We write ``exact_k`` = k float32 values, which is lossless; S rows; and ``labels``, negative outside the loss mask. Rows
that are not stored, and entries beyond a nucleus, are filled with finite numbers and distinct ids, because DistillKit's
losses multiply them by 0. With a nucleus, ``missing_probability_handling: symmetric_uniform`` counts the student's
probability of these fill-in ids as stored; ``zero`` is not affected.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.records import LogitsSample
from tools.bridges.compression import Compression, decode_logprobs, pack_bits, unpack_bits
from tools.bridges.layout import ABSENT, Pairs, TableLayout, every_row
from tools.bridges.lists import Ragged, check_size, lists, lists_of_lists, read_lists, read_lists_of_lists

CONFIG_FILE = "compression_config.yaml"
IGNORED = -100  # label of a row outside the loss mask
TRAINER_WANTS = """\
DistillKit's trainer does not read these files directly. It expects a data set saved to disk by `datasets`, with
packed rows of one length: save it, pack it with DistillKit's `pack_logits.py`, and point the trainer at the packed one.

```python
from datasets import load_dataset

load_dataset("parquet", data_files="data_*.parquet", split="train").save_to_disk("saved")
```

```yaml
dataset:
  train_dataset: {disk_path: packed}
  prepacked: true
```
"""
SCHEMA = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.uint64())),
        pa.field("labels", pa.list_(pa.int64())),
        pa.field("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
        pa.field("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
    ]
)


class DistillKitLayout(TableLayout):
    """Writer of DistillKit's layout."""

    name = "distillkit"
    pattern = "data_{number}.parquet"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.compression = Compression(
            d=manifest.teacher.vocab_size,
            k=manifest.capture.logits.k,
            exact_k=manifest.capture.logits.k,
            delta_encoding=False,
        )

    def batch(self, pairs: Pairs) -> pa.RecordBatch:
        """The rows of these samples."""
        labels, logprobs, indices = [], [], []
        for tokens, logits in pairs:
            labels.append(np.where(tokens.loss_mask, tokens.input_ids.astype(np.int64), IGNORED))
            ids_PK, logprobs_PK = fill_rows(logits)
            k, vocabulary = ids_PK.shape[1], self.compression.d
            logprobs_SK = every_row(logits, logprobs_PK, -math.log(vocabulary))
            ids_SK = every_row(logits, ids_PK, 0)
            ids_SK[~np.isin(np.arange(logits.num_tokens), logits.positions)] = np.arange(k)
            logprobs.append(np.ascontiguousarray(logprobs_SK, "<f4").view(np.uint8))
            indices.append(pack_bits(ids_SK, self.compression.id_bits))
        columns = [
            lists([tokens.input_ids.astype(np.uint64) for tokens, _ in pairs]),
            lists(labels),
            lists_of_lists(logprobs),
            lists_of_lists(indices),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def more_files(self) -> dict[str, str]:
        """``compression_config.yaml``: the settings that decode the bytes."""
        return {CONFIG_FILE: yaml.safe_dump(self.compression.model_dump(mode="json"), sort_keys=True)}

    def about(self) -> str:
        """The columns, and DistillKit's settings for reading them."""
        settings = "".join(f"    {line}\n" for line in self.more_files()[CONFIG_FILE].splitlines())
        return (
            "In the layout of DistillKit's captured teachers. Row t predicts token t + 1; all log-probabilities are "
            "exact float32.\n\n"
            "- `input_ids`\n"
            "- `labels`: -100 at rows outside the loss mask. DistillKit's KL skips row t where `labels[t]` is "
            "negative; its cross-entropy skips token t, so it is one token early at the edges of the mask.\n"
            "- `compressed_logprobs`, `bytepacked_indices`: one list of bytes a row, encoded as "
            "`compression_config.yaml` says. Rows that are not stored are uniform and outside the loss mask; entries "
            "beyond a nucleus have log-probability -10000\n"
            "\n```yaml\nteacher:\n  kind: dataset\n  logprob_compressor:\n" + settings + "```\n\n" + TRAINER_WANTS
        )


def fill_rows(logits: LogitsSample) -> tuple[np.ndarray, np.ndarray]:
    """Pad every row to K entries with distinct ids: ids int32 and log-probabilities float32, [P, K].

    Added entries have log-probability ABSENT and the lowest ids not yet in the row.
    """
    k = logits.ids.shape[1]
    absent_PK = np.arange(k) >= logits.counts[:, None]
    if not absent_PK.any():
        return logits.ids, logits.logprobs
    in_row_PK = np.zeros(logits.ids.shape, bool)  # whether id 0..K-1 is in the row: enough, as a row has ≤ K entries
    rows, columns = np.nonzero(~absent_PK & (logits.ids < k))
    in_row_PK[rows, logits.ids[rows, columns]] = True
    free_PK = np.argsort(in_row_PK, axis=1, kind="stable")
    nth_PK = np.maximum(np.arange(k) - logits.counts[:, None], 0)
    ids_PK = np.where(absent_PK, np.take_along_axis(free_PK, nth_PK, axis=1), logits.ids)
    return ids_PK.astype(np.int32), np.where(absent_PK, ABSENT, logits.logprobs)


class Rows(NamedTuple):
    """One sequence of the data set, decoded."""

    input_ids: np.ndarray  # int64 [S]
    loss_mask: np.ndarray  # bool [S]
    ids: np.ndarray  # int64 [R, K]; R is S or S - 1
    logprobs: np.ndarray  # float32 [R, K]


def sequences(batch: pa.RecordBatch, compression: Compression | None, where: str, first_row: int) -> Iterator[Rows]:
    """Decode a batch's sequences and split packed rows. ``first_row``: the batch's first row in the file, for errors.

    Raises UserError when a column is missing or lengths disagree.
    """
    names = batch.schema.names

    def column(name: str) -> Any:
        return batch.column(names.index(name))

    if "packed_indices" in names:
        raise UserError(
            f"{where}: `packed_indices`: DistillKit's older layout may hold mean-centred logits without their "
            "normaliser, which give no probabilities; capture the teacher again"
        )
    pairs = [("bytepacked_indices", "compressed_logprobs"), ("token_ids", "top_values")]
    found = [pair for pair in pairs if set(pair) <= set(names)]
    if "input_ids" not in names or not found:
        raise UserError(
            f"{where}: columns {', '.join(names)}; wanted input_ids, compressed_logprobs and bytepacked_indices"
        )
    id_name, value_name = found[0]
    input_ids = read_lists(column("input_ids"), "integer", f"{where}: input_ids")
    labels = read_lists(column("labels"), "integer", f"{where}: labels") if "labels" in names else None
    packing = None
    if "attention_mask" in names:
        packing = read_lists(column("attention_mask"), "integer", f"{where}: attention_mask")
    ids = read_lists_of_lists(column(id_name), "integer", f"{where}: {id_name}")
    kind = "integer" if value_name == "compressed_logprobs" else "floating"
    values = read_lists_of_lists(column(value_name), kind, f"{where}: {value_name}")
    for i, tokens in enumerate(input_ids):
        at = f"{where}: row {first_row + i}"
        n_rows = len(ids[i].lengths)
        if not len(tokens) or n_rows not in (len(tokens), len(tokens) - 1) or len(values[i].lengths) != n_rows:
            raise UserError(
                f"{at}: {len(tokens)} input_ids, {n_rows} rows of {id_name} and {len(values[i].lengths)} of "
                f"{value_name}; wanted one row a token, or one row fewer"
            )
        for name, column_of_rows in (("labels", labels), ("attention_mask", packing)):
            if column_of_rows is not None and len(column_of_rows[i]) != len(tokens):
                raise UserError(f"{at}: {len(column_of_rows[i])} {name}, wanted {len(tokens)}: one a token")
        k = compression.k if compression is not None and kind == "integer" else max(ids[i].lengths, default=1)
        check_size(n_rows, int(k), at)
        ids_RK, logprobs_RK = _decoded(ids[i], values[i], compression if kind == "integer" else None, at)
        loss_mask = np.ones(len(tokens), bool) if labels is None else labels[i] >= 0
        row = Rows(tokens, loss_mask, ids_RK, logprobs_RK)
        yield from [row] if packing is None else _unpacked(row, packing[i])


def _decoded(ids: Ragged, values: Ragged, compression: Compression | None, at: str) -> tuple[np.ndarray, np.ndarray]:
    if compression is None:
        id_width = value_width = int(ids.lengths[0]) if len(ids.lengths) else 1
    else:
        id_width, value_width = compression.id_bytes, compression.logprob_bytes
    matrices = []
    for name, ragged, width in (("ids", ids, id_width), ("log-probabilities", values, value_width)):
        if wrong := np.flatnonzero(ragged.lengths != width).tolist():
            raise UserError(
                f"{at}: token {wrong[0]}: {ragged.lengths[wrong[0]]} entries of {name}, wanted {width} by the "
                "compression settings and the other rows"
            )
        matrices.append(ragged.values.reshape(len(ragged.lengths), width))
    ids_RX, values_RX = matrices
    if compression is None:
        return ids_RX, values_RX
    for matrix in matrices:
        if matrix.dtype != np.uint8 and matrix.size and (matrix.min() < 0 or matrix.max() > 255):
            raise UserError(f"{at}: numbers from {matrix.min()} to {matrix.max()}, wanted bytes (0 to 255)")
    ids_RK = unpack_bits(ids_RX.astype(np.uint8), compression.id_bits, compression.k)
    return ids_RK, decode_logprobs(values_RX.astype(np.uint8), compression)


def _unpacked(row: Rows, packing_S: np.ndarray) -> Iterator[Rows]:
    """Split a packed row: each sequence has its own number in the attention mask, padding has 0."""
    boundaries = np.flatnonzero(np.diff(packing_S)) + 1
    for start, stop in zip([0, *boundaries], [*boundaries, len(packing_S)], strict=True):
        if packing_S[start] > 0:
            yield Rows(*(array[start:stop] for array in row))
