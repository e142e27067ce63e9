"""The layout ``parquet``: the tokens and logits signals, complete, as plain columns for ``datasets`` and others.

One row per sequence; the schema metadata key ``teacher_cache`` holds the cache's manifest without its lists. The round
trip is lossless: a cache that was exported and imported has bit-identical values.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from schemas.cache_config import CodecConfig, LogitsCapture, Provenance
from schemas.derivation import Derivation, SourceCache
from schemas.errors import UserError
from schemas.load import parse_json
from schemas.manifest import CorpusInfo, Manifest, TeacherInfo, TokenizerInfo
from schemas.strict import Strict
from teacher_cache.records import LogitsSample, TokenSample
from tools.bridges.layout import Pairs, TableLayout
from tools.bridges.lists import check_size, lists, lists_of_lists, read_lists, read_lists_of_lists, texts

METADATA = b"teacher_cache"
VERSION = 1
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("source_id", pa.string()),
        pa.field("layer", pa.string()),
        pa.field("text", pa.string()),
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("loss_mask", pa.list_(pa.bool_())),
        pa.field("byte_start", pa.list_(pa.uint32())),
        pa.field("byte_end", pa.list_(pa.uint32())),
        pa.field("positions", pa.list_(pa.int32())),
        pa.field("ids", pa.list_(pa.list_(pa.int32()))),
        pa.field("logprobs", pa.list_(pa.list_(pa.float32()))),
        pa.field("next_logprob", pa.list_(pa.float32())),
        pa.field("log_partitions", pa.list_(pa.list_(pa.float32()))),
    ]
)


class Facts(Strict):
    """The metadata of every file: a description of the exported cache."""

    version: int = Field(ge=1, le=VERSION)
    source: SourceCache
    teacher: TeacherInfo
    tokenizer: TokenizerInfo
    corpus: CorpusInfo
    logits: LogitsCapture
    codec: CodecConfig
    provenance: Provenance


class ParquetLayout(TableLayout):
    """Writer of the plain Parquet layout."""

    name = "parquet"
    pattern = "data/train-{number:05d}.parquet"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        facts = Facts(
            version=VERSION,
            source=SourceCache(
                manifest_sha256=manifest.digest(),
                samples=manifest.totals.samples,
                tokens=manifest.totals.tokens,
                derived=manifest.derived,
            ),
            teacher=manifest.teacher,
            tokenizer=manifest.tokenizer,
            corpus=manifest.corpus,
            logits=manifest.capture.logits,
            codec=manifest.codec,
            provenance=manifest.provenance,
        )
        self._schema = SCHEMA.with_metadata({METADATA: facts.model_dump_json().encode()})

    def batch(self, pairs: Pairs) -> pa.RecordBatch:
        """The rows of these samples."""
        tokens, logits = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        counts = [sample.counts for sample in logits]
        columns = [
            pa.array([sample.key for sample in tokens]),
            pa.array([sample.source_id for sample in tokens]),
            pa.array([sample.layer for sample in tokens]),
            pa.array([sample.text for sample in tokens]),
            lists([sample.input_ids.astype(np.int32) for sample in tokens]),
            lists([sample.loss_mask for sample in tokens]),
            lists([sample.byte_start for sample in tokens]),
            lists([sample.byte_end for sample in tokens]),
            lists([sample.positions for sample in logits]),
            lists_of_lists([sample.ids for sample in logits], counts),
            lists_of_lists([sample.logprobs for sample in logits], counts),
            lists([sample.next_logprob for sample in logits]),
            lists_of_lists([sample.log_partition for sample in logits]),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def about(self) -> str:
        """The columns."""
        temperatures = ", ".join(f"{t:g}" for t in self.manifest.capture.logits.temperatures)
        return (
            "One row per sequence. The teacher's row t is its distribution after reading tokens 0..t: it predicts "
            "token t + 1.\n\n"
            "- `key`, `source_id`, `layer`, `text`: the sequence's key, origin, layer of the data mix, and text\n"
            "- `input_ids`; `byte_start`, `byte_end`: each token and its span in the UTF-8 of `text`\n"
            "- `loss_mask`: true at t where the prediction of token t + 1 is in the loss\n"
            "- `positions`: the stored rows; all columns below have one entry per stored row\n"
            "- `ids`, `logprobs`: the likeliest tokens, in descending order, and log-probabilities in nats at "
            "temperature 1\n"
            "- `next_logprob`: log-probability of the next token; NaN at the last token\n"
            f"- `log_partitions`: A_T = log Σ_v p(v)^(1/T) for T = {temperatures}; "
            "log p_T(i) = logprobs / T − A_T\n\n"
            "```python\nfrom datasets import load_dataset\n\n"
            'rows = load_dataset("parquet", data_files="data/*.parquet")\n```\n'
        )


def facts_of(metadata: dict[bytes, bytes] | None, where: str) -> Facts:
    """The description of the exported cache, from a file's metadata. Raises UserError."""
    if not metadata or METADATA not in metadata:
        raise UserError(f"{where}: no `teacher_cache` in its metadata; give files written by `cache-tools export`")
    return parse_json(Facts, metadata[METADATA], f"{where}: metadata")


def derivation(facts: Facts) -> Derivation:
    """The import's derivation, for the manifest."""
    return Derivation(action="import", sources=[facts.source], notes="From Parquet files that a cache was exported to.")


def samples(
    batch: pa.RecordBatch, facts: Facts, where: str, first_row: int
) -> Iterator[tuple[TokenSample, LogitsSample]]:
    """The samples of a batch. Types and lengths are checked, values are not.

    ``first_row``: the batch's first row in the file, for error messages. Raises UserError.
    """
    found = {field.name: field.type for field in batch.schema}
    if missing := [name for name in SCHEMA.names if name not in found]:
        raise UserError(f"{where}: no column {', '.join(missing)}")

    def column(name: str) -> Any:
        return batch.column(batch.schema.get_field_index(name))

    names = {name: texts(column(name), f"{where}: {name}") for name in ("key", "source_id", "layer", "text")}
    kinds = {
        "input_ids": "integer", "loss_mask": "boolean", "byte_start": "integer", "byte_end": "integer",
        "positions": "integer", "next_logprob": "floating",
    }  # fmt: skip
    flat = {name: read_lists(column(name), kind, f"{where}: {name}") for name, kind in kinds.items()}
    nested = {
        name: read_lists_of_lists(column(name), kind, f"{where}: {name}")
        for name, kind in (("ids", "integer"), ("logprobs", "floating"), ("log_partitions", "floating"))
    }
    for i in range(batch.num_rows):
        at = f"{where}: row {first_row + i}"
        row = {name: values[i] for name, values in flat.items()}
        yield _sample(row, {name: values[i] for name, values in nested.items()}, names, i, facts, at)


def _sample(
    row: dict[str, np.ndarray], nested: dict[str, Any], names: dict[str, list[str]], i: int, facts: Facts, where: str
) -> tuple[TokenSample, LogitsSample]:
    key, k, n_temperatures = names["key"][i], facts.logits.k, len(facts.logits.temperatures)
    n_tokens, n_rows = len(row["input_ids"]), len(row["positions"])
    counts = nested["ids"].lengths
    wanted = {"loss_mask": n_tokens, "byte_start": n_tokens, "byte_end": n_tokens, "next_logprob": n_rows}
    lengths = {name: (len(row[name]), length) for name, length in wanted.items()}
    lengths |= {name: (len(nested[name].lengths), n_rows) for name in nested}
    for name, (length, right) in lengths.items():
        if length != right:
            raise UserError(f"{where}: {length} entries of {name}, wanted {right}")
    if not np.array_equal(nested["logprobs"].lengths, counts):
        raise UserError(f"{where}: ids and logprobs differ in row lengths")
    if n_rows and (counts.min() < 1 or counts.max() > k):
        raise UserError(f"{where}: rows of {counts.min()} to {counts.max()} entries, wanted 1 to {k}")
    if (nested["log_partitions"].lengths != n_temperatures).any():
        raise UserError(f"{where}: rows of log_partitions must have {n_temperatures} entries, one a temperature")
    check_size(n_rows, k, where)
    spans = row["byte_start"], row["byte_end"]
    n_bytes = len(names["text"][i].encode())
    if n_tokens and (spans[0].min() < 0 or (spans[0] > spans[1]).any() or spans[1].max() > n_bytes):
        raise UserError(f"{where}: byte_start and byte_end: a span is not within the text of {n_bytes} bytes")
    tokens = TokenSample(
        key=key,
        source_id=names["source_id"][i],
        layer=names["layer"][i],
        text=names["text"][i],
        input_ids=row["input_ids"],
        loss_mask=row["loss_mask"],
        byte_start=spans[0].astype(np.uint32),
        byte_end=spans[1].astype(np.uint32),
    )
    logits = LogitsSample(
        num_tokens=n_tokens,
        positions=row["positions"],
        counts=counts.astype(np.int32),
        ids=nested["ids"].padded(k, 0),
        logprobs=nested["logprobs"].padded(k, -np.inf),
        next_logprob=row["next_logprob"],
        log_partition=nested["log_partitions"].values.reshape(n_rows, n_temperatures),
    )
    return tokens, logits
