"""``cache-tools inspect``: what a cache is, from its manifest; and one sample of it, token by token."""

from typing import Any

import numpy as np

from schemas.errors import UserError
from teacher_cache.shards.marks import up_to_date_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage


def describe(url: str) -> dict[str, Any]:
    """The facts a user asks of a cache first, as plain data. Raises UserError when there is none at ``url``."""
    manifest = up_to_date_manifest(Storage(url))
    totals, tokens = manifest.totals, max(1, manifest.totals.tokens)
    sizes = dict(totals.bytes) | {
        "index": totals.index_bytes,
        "tables": sum(table.bytes for table in manifest.tables.values()),
    }
    return {
        "cache": url,
        "manifest_digest": manifest.digest(),
        "format_version": manifest.format_version,
        "complete": manifest.complete,
        "teacher": manifest.teacher.model_dump(),
        "tokenizer": manifest.tokenizer.model_dump(),
        "corpus": manifest.corpus.counts.model_dump(),
        "capture": manifest.capture.model_dump(),
        "codec": manifest.codec.model_dump(),
        "provenance": manifest.provenance.model_dump(),
        "shards": len(manifest.shards),
        "planned_shards": len(manifest.units),
        "samples": totals.samples,
        "tokens": totals.tokens,
        "bytes": sizes,
        "bytes_per_token": {name: size / tokens for name, size in sizes.items()},
    }


def sample_rows(url: str, key: str, limit: int, alternatives: int = 3) -> list[dict[str, Any]]:
    """The first ``limit`` rows of the sample ``key``: the token read, the teacher's best guesses, what came next.

    Raises UserError when the cache has no such sample.
    """
    reader = CacheReader(url)
    if key not in reader.keys:
        raise UserError(
            f"{url}: no sample {key!r} among {len(reader)}; keys are 32 hex digits, see `keys` in shard-*.json"
        )
    position = reader.keys.index(key)
    tokens, logits = reader.read_tokens(position), reader.read_logits(position)
    text = tokens.text.encode()
    rows = []
    for t in range(min(limit, len(tokens.input_ids))):
        count = min(alternatives, int(logits.counts[t]))
        probabilities = np.exp(logits.logprobs[t, :count])
        rows.append(
            {
                "row": t,
                "token_id": int(tokens.input_ids[t]),
                "token": text[tokens.byte_start[t] : tokens.byte_end[t]].decode("utf-8", "backslashreplace"),
                "counts": bool(tokens.loss_mask[t]),
                "best_ids": logits.ids[t, :count].tolist(),
                "best_probabilities": [round(float(p), 4) for p in probabilities],
                "next_probability": None if t + 1 == len(tokens.input_ids) else float(np.exp(logits.next_logprob[t])),
            }
        )
    return rows
