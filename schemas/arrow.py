"""Arrow schemas of the shard table and of tar members.

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


def shard_table_schema(signals: Sequence[str]) -> pa.Schema:
    """``tables/{sha256}.arrow`` of a large cache: one row per planned unit, with zeros until its shard is committed."""
    columns = [pa.field(name, pa.int64(), nullable=False) for name in ("number", "samples", "tokens")]
    for file in ("index", *signals):
        columns.append(pa.field(f"{file}_bytes", pa.int64(), nullable=False))
        columns.append(pa.field(f"{file}_sha256", pa.binary(32), nullable=False))
    return pa.schema(columns)
