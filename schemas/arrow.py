"""Arrow schemas of the tar members. Each member ``{key}.{signal}.arrow`` is an Arrow IPC stream: one batch of one row.

One row per sequence keeps per-sample overhead small; ``S`` is the sequence's number of tokens.
The files of these names in ``teacher_cache/codec`` describe the sections.
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

LOGITS_SCHEMA = pa.schema(
    [
        pa.field("sizes", pa.list_(pa.int32()), nullable=False),  # bytes of counts, ids, logprobs, excesses, scalars
        pa.field("frame", pa.binary(), nullable=False),  # one zstd frame of these, one after the other
    ]
)

DRAWS_SCHEMA = pa.schema(
    [
        pa.field("positions", pa.list_(pa.uint32()), nullable=False),  # [P] rows of the sequence, rising
        pa.field("sizes", pa.list_(pa.int32()), nullable=False),  # bytes of codes, entropy
        pa.field("frame", pa.binary(), nullable=False),  # one zstd frame of these, one after the other
    ]
)

HIDDEN_SCHEMA = pa.schema(
    [
        pa.field("positions", pa.list_(pa.uint32()), nullable=False),  # [P] rows of the sequence, rising
        pa.field("sizes", pa.list_(pa.int32()), nullable=False),  # bytes of values, scales, outlier_index, outliers
        pa.field("frame", pa.binary(), nullable=False),  # one zstd frame of these, one after the other
    ]
)

ATTENTION_SCHEMA = pa.schema(
    [
        pa.field("positions", pa.list_(pa.uint32()), nullable=False),  # [P] query rows of the sequence, rising
        pa.field("heads", pa.list_(pa.uint32()), nullable=False),  # [H] most focused first
        pa.field("sizes", pa.list_(pa.int32()), nullable=False),  # bytes of weights, keys
        pa.field("frame", pa.binary(), nullable=False),  # one zstd frame of these, one after the other
    ]
)

SCHEMAS = {
    "tokens": TOKENS_SCHEMA,
    "logits": LOGITS_SCHEMA,
    "draws": DRAWS_SCHEMA,
    "final": HIDDEN_SCHEMA,
    "hidden": HIDDEN_SCHEMA,
    "attention": ATTENTION_SCHEMA,
}
