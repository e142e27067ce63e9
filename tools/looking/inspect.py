"""``cache-tools inspect``: a summary of a cache from its manifest, and one sample token by token."""

from typing import Any

import numpy as np

from teacher_cache.records import LogitsSample
from teacher_cache.shards.marks import up_to_date_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.shard_table import with_lists
from teacher_cache.shards.storage import Storage
from teacher_cache.signals.side_table import SIDE_SIGNALS
from tools.looking.sampling import find_samples


def describe(url: str) -> dict[str, Any]:
    """Summary of a cache as plain data. Raises UserError when there is none at ``url``."""
    storage = Storage(url)
    manifest = with_lists(storage, up_to_date_manifest(storage))
    totals, sizes = manifest.totals, manifest.sizes()
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
        "bytes": sizes | {"total": sum(sizes.values())},
        "bytes_per_token": manifest.bytes_per_token() | {"total": sum(manifest.bytes_per_token().values())},
    }


def sample_rows(url: str, key: str, limit: int, alternatives: int = 3) -> list[dict[str, Any]]:
    """``limit`` rows of the sample ``key``, from the first in the loss mask: token, top predictions, next token.

    Other signals, where the cache has them: the norms of the hidden states per layer and of the final one, the largest
    weight of each attention head, the tokens drawn at each temperature. None for what is not stored at a row. Raises
    UserError when the cache has no such sample.
    """
    manifest = up_to_date_manifest(Storage(url))
    reader = CacheReader(url, ("tokens", *manifest.capture.signals), manifest)
    (number,) = find_samples(reader, [key])
    tokens = reader.read_tokens(number)
    by_name = _figures(reader, number, alternatives)
    text = tokens.text.encode()
    first = int(tokens.loss_mask.argmax())  # 0 if the mask is empty
    rows = []
    for t in range(first, min(first + limit, len(tokens.input_ids))):
        rows.append(
            {
                "row": t,
                "token_id": int(tokens.input_ids[t]),
                "token": text[tokens.byte_start[t] : tokens.byte_end[t]].decode("utf-8", "backslashreplace"),
                "counts": bool(tokens.loss_mask[t]),
                **{name: by_row.get(t) for name, by_row in by_name.items()},
            }
        )
    return rows


def _figures(reader: CacheReader, position: int, alternatives: int) -> dict[str, dict[int, Any]]:
    """By name of a figure, the rows of a sample that have it. Only of signals that the cache stores."""
    found = _guesses(reader.read_logits(position), alternatives)
    for name, settings in reader.manifest.capture.side_settings.items():
        found |= SIDE_SIGNALS[name].figures(reader.read(position, name), settings)
    return found


def _guesses(logits: LogitsSample, alternatives: int) -> dict[str, dict[int, Any]]:
    """The best tokens of each row, and the probability of the one that came next."""
    found: dict[str, dict[int, Any]] = {"best_ids": {}, "best_probabilities": {}, "next_probability": {}}
    for p, t in enumerate(logits.positions.tolist()):
        count = min(alternatives, int(logits.counts[p]))
        found["best_ids"][t] = logits.ids[p, :count].tolist()
        found["best_probabilities"][t] = [round(float(np.exp(value)), 4) for value in logits.logprobs[p, :count]]
        if t + 1 < logits.num_tokens:
            found["next_probability"][t] = float(np.exp(logits.next_logprob[p]))
    return found
