"""Size of a cached token, and the error of its values.

``teacher-cache run`` writes two caches of the real teacher over the same sequences of 2,048 tokens of code (the default
length): top 64 with two log-partitions, and 50 draws at temperature 1 next to a top 1. All files are counted except the
code table, a fixed cost per cache that is reported separately.

Other systems' layouts (see ``layouts``) hold the same rows from a forward pass, in float16; and, for a comparison at
equal error, the rows as decoded from the cache. The quantisation error is that of the codec: float32 rows are encoded
with the cache's own table, decoded, and compared.

A vocabulary of 248 K is simulated: each id of a real row is mapped to one of five, by a hash of the id and the token
just read, so that the same token often has another id in another context.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.support.common import FOLDER, TEMPERATURES, K, cached, sequences_of, shared_cache, shared_settings
from benchmarks.support.layouts import ARROW, DISTILLKIT, LAYOUTS, Rows
from benchmarks.support.results import Row, at_most, exit_status, write_results
from benchmarks.support.true_rows import Forward
from schemas.manifest import Manifest
from teacher_cache.codec.permutation import CodeTable
from teacher_cache.records import Captured, LogitsSample
from teacher_cache.shards.marks import read_table
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.tar import member_bytes
from teacher_cache.signals.encoders import make_code_table
from teacher_cache.signals.logits.codec import LogitsCodec

MAX_BYTES, MAX_BYTES_248K, MAX_SAMPLED = 118, 135, 32
MAX_OF_ARROW, MAX_OF_DISTILLKIT = 3 / 4, 2 / 5
VARIANTS = 5  # ids per real id in the simulated vocabulary
FORWARD_SEQUENCES = 4


def main() -> int:
    """Run the benchmark; returns the exit status."""
    cache, _ = shared_cache()
    reader = CacheReader(str(cache))
    manifest = reader.manifest
    sizes = manifest.totals.bytes_per_token()
    logits = sizes["logits"] + sizes["index"]
    exact = Forward(sequences_of(reader, limit=FORWARD_SEQUENCES)).samples
    error = quantisation_error(str(cache), manifest, exact)
    others = layout_sizes([Rows.of(sample) for sample in exact], "exact")
    same = layout_sizes([Rows.of(reader.read_logits(i)) for i in range(FORWARD_SEQUENCES)], "same")
    large = large_vocabulary(reader)
    sampled = CacheReader(str(sampled_cache()), ("tokens", "draws")).manifest.totals.bytes_per_token()
    table_bytes = sum(entry.bytes for entry in manifest.tables.values())
    steps = manifest.codec
    rows = [
        at_most("top 64, everything: logits, tokens, index", sum(sizes.values()), "B/token", MAX_BYTES),
        *(Row(f"… {name}", size, "B/token") for name, size in sizes.items()),
        at_most(
            "logits at V = 248 K (simulated), tokens, index",
            large + sizes["tokens"] + sizes["index"],
            "B/token",
            MAX_BYTES_248K,
        ),
        at_most("sampled, 50 draws at T = 1, everything", sum(sampled.values()), "B/token", MAX_SAMPLED),
        *(Row(f"… {name}", size, "B/token") for name, size in sampled.items()),
        at_most(f"logits and index ÷ {ARROW}", logits / others[ARROW], "×", MAX_OF_ARROW),
        at_most("… at the very same error", logits / same[ARROW], "×", MAX_OF_ARROW),
        at_most(f"logits and index ÷ {DISTILLKIT}", logits / others[DISTILLKIT], "×", MAX_OF_DISTILLKIT),
        Row("… at the very same error", logits / same[DISTILLKIT], "×"),
        *(
            Row(f"{name}: exact · at our error", f"{others[name]:.1f} · {same[name]:.1f}", "B/token")
            for name in LAYOUTS
        ),
        Row("code table, once per cache", table_bytes / 1000, "kB"),
        at_most("quantisation error, log-probabilities", error["logprobs"], "nat", 0.5 / steps.logprob_steps_per_nat),
        at_most("quantisation error, log-partitions", error["scalars"], "nat", 0.5 / steps.scalar_steps_per_nat),
    ]
    raw = {
        "totals": manifest.totals.model_dump(),
        "shards": len(manifest.shards),
        "layouts": {"exact": others, "at our error": same},
        "sampled": sampled,
        "logits at 248 K": large,
        "quantisation_error": error,
        "k": K,
        "temperatures": TEMPERATURES,
    }
    title = f"Size: SmolLM2-135M, K = {K}, two log-partitions, {manifest.totals.tokens:,} tokens of code"
    write_results("size", title, rows, raw)
    return exit_status(rows)


def sampled_cache() -> Path:
    """Write the cache of draws; returns its path."""
    folder = FOLDER / "sampled"
    tree = shared_settings(folder)
    tree["capture"] = {
        "logits": {"k": 1, "temperatures": [1.0]},
        "draws": {"n": 50, "region": "all", "temperatures": [1.0]},
    }
    cached(folder, tree)
    return Path(tree["output"]["path"])


def layout_sizes(samples: list[Rows], name: str) -> dict[str, float]:
    """Bytes a token for every layout."""
    shutil.rmtree(FOLDER / "sizes" / name, ignore_errors=True)
    return {
        title: kind(FOLDER / "sizes" / name / kind.__name__, samples).bytes_per_token for title, kind in LAYOUTS.items()
    }


def large_vocabulary(reader: CacheReader) -> float:
    """Bytes a token of the logits tar if the vocabulary were five times as large."""
    capture, codec = reader.manifest.capture.logits, reader.manifest.codec
    samples = []
    for number in range(len(reader)):
        sample, read = reader.read_logits(number), reader.read_tokens(number).input_ids.astype(np.uint64)
        hashed = (sample.ids.astype(np.uint64) * np.uint64(0x9E3779B1) + read[sample.positions, None]) * np.uint64(
            0xC2B2AE3D27D4EB4F
        )
        variants = (hashed >> np.uint64(40)) % np.uint64(VARIANTS)
        ids = sample.ids * VARIANTS + variants.astype(np.int32)
        samples.append(replace(sample, ids=ids))
    vocabulary = VARIANTS * reader.manifest.teacher.vocab_size
    first = samples[: len(samples) // len(reader.manifest.shards)]  # a job builds its code table from its first unit
    large = LogitsCodec(capture, codec, CodeTable(make_code_table(map(Captured, first), vocabulary)))
    return sum(member_bytes(len(large.encode(sample))) for sample in samples) / int(reader.num_tokens.sum())


def quantisation_error(url: str, manifest: Manifest, samples: list[LogitsSample]) -> dict[str, float]:
    """Largest difference between rows before encoding and after decoding, in nats."""
    table = CodeTable(read_table(Storage(url), next(iter(manifest.tables)), manifest.teacher.vocab_size))
    codec = LogitsCodec(manifest.capture.logits, manifest.codec, table)
    worst = {"logprobs": 0.0, "scalars": 0.0}
    for sample in samples:
        decoded = codec.decode(codec.encode(sample), sample.num_tokens)
        if not np.array_equal(decoded.ids, sample.ids):
            raise RuntimeError("the codec changed ids")
        for kind, before, after in (
            ("logprobs", sample.logprobs, decoded.logprobs),
            ("scalars", sample.log_partition, decoded.log_partition),
            ("scalars", sample.next_logprob[:-1], decoded.next_logprob[:-1]),
        ):
            worst[kind] = max(worst[kind], float(np.abs(before.astype(np.float64) - after).max()))
    return worst


if __name__ == "__main__":
    sys.exit(main())
