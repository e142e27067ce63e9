"""Arrow schemas of the shard table, of tar members, of generated replies, and of curated records.

Each member ``{key}.{signal}.arrow`` is an Arrow IPC stream: one batch of one row.

One row per sequence keeps the per-sample overhead small. A ``frame`` is a zstd frame of sections; the signals' codecs
define their content.
"""

from collections.abc import Sequence

import pyarrow as pa

TOKENS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # content hash, also the tar member's stem
        pa.field("source_id", pa.string(), nullable=False),  # where the document came from: file#record
        pa.field("layer", pa.string(), nullable=False),  # layer of the data mix
        pa.field("frame", pa.binary(), nullable=False),  # token ids, loss mask
        pa.field("text_frame", pa.binary(), nullable=False),  # the text, and the byte spans of its tokens
    ]
)

SIGNAL_SCHEMA = pa.schema([pa.field("frame", pa.binary(), nullable=False)])

PROMPTS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # content hash of the prompt, unique in its place
        pa.field("source_id", pa.string(), nullable=False),  # where it came from: file#record
        pa.field("layer", pa.string(), nullable=False),  # layer of the data mix
        pa.field("prompt", pa.string(), nullable=False),  # as the generator reads it, with its generation prompt
        pa.field("prompt_ids", pa.binary(), nullable=False),  # token ids, u32, little-endian
        pa.field("chat", pa.binary(), nullable=False),  # JSON of the prompt's ChatRecord; nothing for plain text
    ]
)

REPLIES_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # of its prompt
        pa.field("sample", pa.int32(), nullable=False),  # number of the reply to its prompt, from 0
        pa.field("reply", pa.string(), nullable=False),  # without the token that ends it
        pa.field("reply_ids", pa.binary(), nullable=False),  # token ids, u32, with the token that ends it
        pa.field("finish", pa.string(), nullable=False),  # stop, or length
        pa.field("reason", pa.string(), nullable=False),  # why it is not trained on; empty: it is
        pa.field("seed", pa.int64(), nullable=False),  # of its random numbers
        pa.field("sampling", pa.string(), nullable=False),  # digest of the sampling settings
        pa.field("template", pa.string(), nullable=False),  # sha256 of the chat template; empty: none
        pa.field("generator", pa.string(), nullable=False),  # fingerprint of the model
        pa.field("made", pa.string(), nullable=False),  # empty: at once; chain_of_verification: in its stages
    ]
)

CURATED_SCHEMA = pa.schema(
    [
        pa.field("number", pa.int64(), nullable=False),  # in the input, from 0
        pa.field("source", pa.int32(), nullable=False),  # index of its source in the configuration
        pa.field("source_id", pa.string(), nullable=False),  # where it came from: file#record
        pa.field("layer", pa.string(), nullable=False),  # layer of the data mix
        pa.field("n_tokens", pa.int64(), nullable=False),  # that are learned
        pa.field("flags", pa.binary(), nullable=False),  # JSON object: what steps found out
        pa.field(
            "content", pa.binary(), nullable=False
        ),  # JSON object: a document, or a generated reply's other fields
        pa.field("prompt", pa.string(), nullable=False),  # of a generated reply, as in PROMPTS_SCHEMA; else empty
        pa.field("prompt_ids", pa.binary(), nullable=False),
        pa.field("chat", pa.binary(), nullable=False),
        pa.field("reply", pa.string(), nullable=False),  # of a generated reply, as in REPLIES_SCHEMA; else empty
        pa.field("reply_ids", pa.binary(), nullable=False),  # empty: a document
        pa.field("step", pa.string(), nullable=False),  # that removed it, by its key; empty: it stays
        pa.field("reason", pa.string(), nullable=False),  # why it left; empty: it stays
    ]
)


def shard_table_schema(signals: Sequence[str]) -> pa.Schema:
    """``tables/{sha256}.arrow`` of a large cache: one row per planned unit, with zeros until its shard is committed."""
    columns = [pa.field(name, pa.int64(), nullable=False) for name in ("number", "samples", "tokens")]
    for file in ("index", *signals):
        columns.append(pa.field(f"{file}_bytes", pa.int64(), nullable=False))
        columns.append(pa.field(f"{file}_sha256", pa.binary(32), nullable=False))
    return pa.schema(columns)
