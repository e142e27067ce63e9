"""How large is a cached token, and how far off are its values?

Over the shared cache (real teacher, K = 64, two log-partitions, sequences of 512 tokens of code), written by
``teacher-cache run``. What counts is every file but the code table, which is a fixed cost of the cache, not of a token:
it is reported next to it. The quantisation error is what the codec adds: float32 rows are encoded with the cache's own
table, decoded, and compared.
"""

import sys

import numpy as np

from benchmarks.common import FOLDER, TEMPERATURES, K, sequences_of, shared_cache
from benchmarks.real_teacher import make_teacher
from benchmarks.results import Row, at_most, exit_status, write_results
from schemas.manifest import Manifest
from teacher_cache.codec.logits import LogitsCodec
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.records import LogitsSample, Request
from teacher_cache.shards.marks import read_table
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage

MAX_BYTES = 118
RAW_BYTES = K * 8 + 4 * (1 + len(TEMPERATURES))  # u32 ids, f32 log-probabilities, f32 scalars


def main() -> int:
    """Run the benchmark; returns the exit status."""
    cache, _ = shared_cache()
    reader = CacheReader(str(cache))
    totals = reader.manifest.totals
    logits, tokens = (totals.bytes[signal] / totals.tokens for signal in ("logits", "tokens"))
    index = totals.index_bytes / totals.tokens
    table_bytes = sum(entry.bytes for entry in reader.manifest.tables.values())
    error = quantisation_error(str(cache), reader.manifest, forward_rows(reader))
    steps = reader.manifest.codec
    rows = [
        at_most("everything: logits, tokens, index", logits + tokens + index, "B/token", MAX_BYTES),
        Row("… logits tar", logits, "B/token"),
        Row("… tokens tar: ids, mask, byte offsets, text", tokens, "B/token"),
        Row("… index", index, "B/token"),
        Row("plain arrays in place of the logits, for comparison", RAW_BYTES, "B/token"),
        Row("code table, once per cache", table_bytes / 1000, "kB"),
        at_most("quantisation error, log-probabilities", error["logprobs"], "nat", 0.5 / steps.logprob_steps_per_nat),
        at_most("quantisation error, log-partitions", error["scalars"], "nat", 0.5 / steps.scalar_steps_per_nat),
    ]
    raw = {
        "totals": totals.model_dump(),
        "shards": len(reader.manifest.shards),
        "table_bytes": table_bytes,
        "table_bytes_per_token": table_bytes / totals.tokens,
        "quantisation_error": error,
        "k": K,
        "temperatures": TEMPERATURES,
    }
    title = f"Size: SmolLM2-135M, K = {K}, two log-partitions, {totals.tokens:,} tokens of code"
    write_results("size", title, rows, raw)
    return exit_status(rows)


def forward_rows(reader: CacheReader) -> list[LogitsSample]:
    """Unquantised rows of two sequences, from a forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    from teacher_cache.signals.logits import reduce_logits, to_sample

    model = AutoModelForCausalLM.from_pretrained(make_teacher(FOLDER.parent / "teacher"), dtype=torch.float32).eval()
    samples = []
    for ids in sequences_of(reader, limit=2):
        ids_S = torch.from_numpy(ids)
        with torch.inference_mode():
            logits_SV = model(ids_S[None]).logits[0]
        rows = reduce_logits(logits_SV, ids_S.roll(-1), K, TEMPERATURES)
        every_row = Request(ids, np.arange(len(ids), dtype=np.int32))
        samples.append(to_sample(rows, every_row, reader.manifest.capture.logits))
    return samples


def quantisation_error(url: str, manifest: Manifest, samples: list[LogitsSample]) -> dict[str, float]:
    """Largest difference between rows before the encoder and after the decoder, in nats."""
    table = CodeTable(read_table(Storage(url), next(iter(manifest.tables)), manifest.teacher.vocab_size))
    codec = LogitsCodec(manifest.capture.logits, manifest.codec, table)
    worst = {"logprobs": 0.0, "scalars": 0.0}
    for sample in samples:
        decoded = codec.decode(codec.encode(sample), sample.num_tokens)
        if not np.array_equal(decoded.ids, sample.ids):
            raise RuntimeError("ids changed on their way through the codec")
        for kind, before, after in (
            ("logprobs", sample.logprobs, decoded.logprobs),
            ("scalars", sample.log_partition, decoded.log_partition),
            ("scalars", sample.next_logprob[:-1], decoded.next_logprob[:-1]),
        ):
            worst[kind] = max(worst[kind], float(np.abs(before.astype(np.float64) - after).max()))
    return worst


if __name__ == "__main__":
    sys.exit(main())
