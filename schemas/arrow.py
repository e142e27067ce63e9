"""Arrow schemas of the tar members. Each member ``{key}.{signal}.arrow`` is an Arrow IPC stream: one batch of one row.

One row per sequence keeps per-sample overhead small; ``S`` is the sequence's number of tokens. The columns of
``logits`` are byte planes, each a zstd frame; ``teacher_cache/codec/logits.py`` describes them.
"""

import pyarrow as pa

TOKENS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # content hash, also the tar member's stem
        pa.field("source_id", pa.string(), nullable=False),  # where the document came from: file#record
        pa.field("layer", pa.string(), nullable=False),  # layer of the data mix
        pa.field("text", pa.string(), nullable=False),  # the text that was tokenized
        pa.field("input_ids", pa.list_(pa.uint32()), nullable=False),  # [S]
        pa.field("loss_mask", pa.list_(pa.bool_()), nullable=False),  # [S] row t counts: token t+1 is to be learned
        pa.field("byte_start", pa.list_(pa.uint32()), nullable=False),  # [S] span of each token in text's UTF-8
        pa.field("byte_end", pa.list_(pa.uint32()), nullable=False),  # [S]
    ]
)

_FRAMES = pa.list_(pa.field("frame", pa.binary(), nullable=False))  # zstd frames, one a byte plane, lowest byte first

LOGITS_SCHEMA = pa.schema(
    [
        pa.field("counts", _FRAMES, nullable=False),  # u16 [S] entries of each row; no frame when every row has k
        pa.field("ids", _FRAMES, nullable=False),  # u16 or u24 [S, K] codes of token ids, row by row
        pa.field("logprobs", _FRAMES, nullable=False),  # u8 or u16 [K, S] quantised differences, column by column
        pa.field("scalars", _FRAMES, nullable=False),  # i32 [1 + T, S] realised log-probability, log-partitions
    ]
)

SCHEMAS = {"tokens": TOKENS_SCHEMA, "logits": LOGITS_SCHEMA}
