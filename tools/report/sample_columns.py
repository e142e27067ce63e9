"""What the page knows of the samples it shows: small columns of rounded numbers, ready for JSON.

Probabilities are in steps of 1/10,000, entropies of 1/100 nat. Positions are those in the sequence; a long sequence is
shown in part, from a little before the first row that counts.
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
LEAD = 64  # tokens before the first row that counts, of a sequence that is shown in part
ALTERNATIVES = 6
MOST_HEADS, MOST_KEYS, MOST_LAYERS = 6, 8, 12


def viewer_sample(reader: CacheReader, position: int, spelling: Spelling) -> dict[str, Any]:
    """One sample for the page. The reader has all signals of the cache open. Raises CorruptCacheError."""
    capture = reader.manifest.capture
    tokens, logits = reader.read_tokens(position), reader.read_logits(position)
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
    draws = None if exact is None else read_draws_of(reader, position, logits)
    keep_P = np.zeros(len(logits.positions), bool)
    keep_P[rows] = True
    figures = row_figures(logits, keep_P, reader.manifest.teacher.vocab_size, draws, exact)
    n = stop - first
    place = figures.positions - first
    shown["entropy"] = _column(n, place, np.rint(100 * figures.entropy))
    shown["stored"] = _column(n, place, _ten_thousandths(figures.coverage))
    follows = figures.positions < len(tokens.input_ids) - 1
    shown["next"] = _column(n, place[follows], _ten_thousandths(np.exp(-figures.surprise[follows])))
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
    used = {index for row in best for index in row["ids"]} | set(following)
    shown["spelled"] = {index: text for index in sorted(used) if (text := spelling[index]) is not None}
    shown["following"] = following
    if capture.attention is not None:
        shown |= _attention(reader.read_attention(position), first, stop)
    if capture.hidden is not None:
        layers = capture.hidden.layer_numbers(reader.manifest.teacher.num_layers)
        shown |= _hidden(reader.read_hidden(position), capture.hidden, layers, first, stop)
    if capture.final is not None:
        norms = _norms(reader.read_final(position), capture.final, first, stop)
        shown["final"] = {row: values[0] for row, values in norms.items()}
    return shown


def _window(tokens: TokenSample) -> tuple[int, int]:
    n = len(tokens.input_ids)
    if n <= MOST_TOKENS:
        return 0, n
    counting = np.flatnonzero(tokens.loss_mask)
    first = max(0, int(counting[0]) - LEAD) if len(counting) else 0
    first = min(first, n - MOST_TOKENS)
    return first, first + MOST_TOKENS


def _texts(tokens: TokenSample, first: int, stop: int) -> dict[str, Any]:
    """The text of each token; the bytes, in hex, of those that cut a character; and text that no token spells.

    A character that several tokens make stands where it begins.
    """
    data = tokens.text.encode()
    texts: list[str] = []
    raw: dict[int, str] = {}
    gaps: dict[int, str] = {}
    end = int(tokens.byte_end[first - 1]) if first else 0
    for place in range(first, stop):
        start, token_end = int(tokens.byte_start[place]), int(tokens.byte_end[place])
        text, cut = token_text(data, start, token_end)
        texts.append(text)
        if cut:
            raw[place] = cut
        if start > end:
            gaps[place] = token_text(data, end, start)[0]
        end = max(end, token_end)
    return {"text": texts, "raw": raw, "gaps": gaps}


def _ten_thousandths(shares: np.ndarray) -> np.ndarray:
    return np.rint(10_000 * np.minimum(shares, 1))


def _column(n: int, places: np.ndarray, values: np.ndarray) -> list[int | None]:
    """Integers at these places of n, None elsewhere."""
    column: list[int | None] = [None] * n
    for place, value in zip(places.tolist(), values.astype(np.int64).tolist(), strict=True):
        column[place] = value
    return column


def _attention(sample: AttentionSample, first: int, stop: int) -> dict[str, Any]:
    """The heads, and of each row for each head its largest weights as a flat list: key, weight, key, weight, …"""
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
    """Euclidean norms of the layers' hidden states, to four digits, by row; None where one is not finite."""
    rows = (sample.positions >= first) & (sample.positions < stop)
    part = HiddenSample(**{name: values[rows] for name, values in vars(sample).items()})
    norms_PC = to_floats(part, capture).norm(dim=2).tolist()
    return {
        row: [float(f"{norm:.4g}") if math.isfinite(norm) else None for norm in norms]
        for row, norms in zip(part.positions.tolist(), norms_PC, strict=True)
    }
