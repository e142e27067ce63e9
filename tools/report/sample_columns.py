"""Data of the samples that the page shows: columns of rounded numbers, ready for JSON.

Probabilities are in steps of 1/10,000, entropies of 1/100 nat. Positions are counted in the whole sequence; of a long
sequence a window is shown, from shortly before the first row in the loss mask.
"""

import math
from typing import Any

import numpy as np

from schemas.cache_config import Quantised
from teacher_cache.records import TokenSample
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.attention.record import AttentionSample
from teacher_cache.signals.hidden.capture import to_floats
from teacher_cache.signals.hidden.record import HiddenSample
from tools.looking.figures import exact_column, read_draws_of, row_figures
from tools.report.token_text import Spelling, token_text

MOST_TOKENS = 512
LEAD = 64  # tokens shown before the first row in the loss mask
ALTERNATIVES = 6
MOST_HEADS, MOST_KEYS, MOST_LAYERS = 6, 8, 12


def viewer_sample(reader: CacheReader, number: int, spelling: Spelling) -> dict[str, Any]:
    """Sample ``number`` for the page; the reader has all signals of the cache open. Raises CorruptCacheError."""
    capture = reader.manifest.capture
    tokens, logits = reader.read_tokens(number), reader.read_logits(number)
    first, stop = _window(tokens)
    shown: dict[str, Any] = {
        "key": tokens.key,
        "layer": tokens.layer[:200],
        "source": tokens.source_id[:200],
        "tokens": len(tokens.input_ids),
        "first": first,
        **_texts(tokens, first, stop),
    }
    rows = np.flatnonzero((logits.positions >= first) & (logits.positions < stop))
    exact = exact_column(reader.manifest)
    draws = None if exact is None else read_draws_of(reader, number, logits)
    shown_P = np.zeros(len(logits.positions), bool)
    shown_P[rows] = True
    figures = row_figures(logits, shown_P, reader.manifest.teacher.vocab_size, draws, exact)
    n = stop - first
    offsets = figures.positions - first
    shown["entropy"] = _column(n, offsets, np.rint(100 * figures.entropy))
    shown["stored"] = _column(n, offsets, _ten_thousandths(figures.coverage))
    has_next = figures.positions < len(tokens.input_ids) - 1
    shown["next"] = _column(n, offsets[has_next], _ten_thousandths(np.exp(-figures.surprise[has_next])))
    shown["mean_entropy"] = round(float(figures.entropy.mean()), 2) if len(rows) else None
    best = [
        {"ids": ids[:count], "p": chances[:count]}
        for ids, chances, count in zip(
            logits.ids[rows, :ALTERNATIVES].tolist(),
            _ten_thousandths(np.exp(logits.logprobs[rows, :ALTERNATIVES].astype(np.float64))).tolist(),
            logits.counts[rows].tolist(),
            strict=True,
        )
    ]
    shown["best"] = dict(zip(figures.positions.tolist(), best, strict=True))
    following = tokens.input_ids[first + 1 : stop + 1].tolist()
    mentioned = {token_id for row in best for token_id in row["ids"]} | set(following)
    shown["spelled"] = {token_id: text for token_id in sorted(mentioned) if (text := spelling[token_id]) is not None}
    shown["following"] = following
    if capture.attention is not None:
        shown |= _attention(reader.read_attention(number), first, stop)
    if capture.hidden is not None:
        layers = capture.hidden.layer_numbers(reader.manifest.teacher.num_layers)
        shown |= _hidden(reader.read_hidden(number), capture.hidden, layers, first, stop)
    if capture.final is not None:
        norms = _norms(reader.read_final(number), capture.final, first, stop)
        shown["final"] = {row: values[0] for row, values in norms.items()}
    return shown


def _window(tokens: TokenSample) -> tuple[int, int]:
    """The positions shown: first, and one past the last."""
    n = len(tokens.input_ids)
    if n <= MOST_TOKENS:
        return 0, n
    in_loss = np.flatnonzero(tokens.loss_mask)
    first = max(0, int(in_loss[0]) - LEAD) if len(in_loss) else 0
    first = min(first, n - MOST_TOKENS)
    return first, first + MOST_TOKENS


def _texts(tokens: TokenSample, first: int, stop: int) -> dict[str, Any]:
    """Each token's text; the bytes, in hex, of tokens that split a character; and text between tokens.

    A character split over several tokens belongs to the first of them.
    """
    data = tokens.text.encode()
    texts: list[str] = []
    raw: dict[int, str] = {}
    gaps: dict[int, str] = {}
    end = int(tokens.byte_end[first - 1]) if first else 0
    for position in range(first, stop):
        start, token_end = int(tokens.byte_start[position]), int(tokens.byte_end[position])
        text, split_bytes = token_text(data, start, token_end)
        texts.append(text)
        if split_bytes:
            raw[position] = split_bytes
        if start > end:
            gaps[position] = token_text(data, end, start)[0]
        end = max(end, token_end)
    return {"text": texts, "raw": raw, "gaps": gaps}


def _ten_thousandths(shares: np.ndarray) -> np.ndarray:
    return np.rint(10_000 * np.minimum(shares, 1))


def _column(n: int, offsets: np.ndarray, values: np.ndarray) -> list[int | None]:
    """A list of length n with integers at ``offsets``, None elsewhere."""
    column: list[int | None] = [None] * n
    for offset, value in zip(offsets.tolist(), values.astype(np.int64).tolist(), strict=True):
        column[offset] = value
    return column


def _attention(sample: AttentionSample, first: int, stop: int) -> dict[str, Any]:
    """The attention heads, and for each row and head its largest weights, flat: key, weight, key, weight, …"""
    rows = np.flatnonzero((sample.positions >= first) & (sample.positions < stop))
    keys = sample.keys[rows, :MOST_HEADS, :MOST_KEYS]
    weights = _ten_thousandths(sample.weights[rows, :MOST_HEADS, :MOST_KEYS].astype(np.float64)).astype(np.int64)
    pairs = np.stack([keys, weights], axis=3)
    by_row = {
        int(sample.positions[row]): [[value for pair in head if pair[1] for value in pair] for head in heads]
        for row, heads in zip(rows, pairs.tolist(), strict=True)
    }
    return {"heads": sample.heads[:MOST_HEADS].tolist(), "attention": by_row}


def _hidden(sample: HiddenSample, capture: Quantised, layers: list[int], first: int, stop: int) -> dict[str, Any]:
    chosen = sorted({int(i) for i in np.linspace(0, len(layers) - 1, min(len(layers), MOST_LAYERS))})
    norms = _norms(sample, capture, first, stop)
    return {
        "layers": [layers[i] for i in chosen],
        "hidden": {row: [values[i] for i in chosen] for row, values in norms.items()},
    }


def _norms(sample: HiddenSample, capture: Quantised, first: int, stop: int) -> dict[int, list[float | None]]:
    """Euclidean norms of the layers' hidden states by row, to four digits; None if not finite."""
    rows = (sample.positions >= first) & (sample.positions < stop)
    part = HiddenSample(**{name: values[rows] for name, values in vars(sample).items()})
    norms_PC = to_floats(part, capture).norm(dim=2).tolist()
    return {
        row: [float(f"{norm:.4g}") if math.isfinite(norm) else None for norm in norms]
        for row, norms in zip(part.positions.tolist(), norms_PC, strict=True)
    }
