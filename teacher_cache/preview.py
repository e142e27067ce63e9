"""Preview a corpus before caching: sequences with their loss masks, and counts of its documents.

Only the beginning of each source is read, so that the time does not depend on the corpus' size; sources are read
separately, so duplicates across them are not found. Corpus text is shown verbatim, never as markup, with terminal
control characters escaped.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from schemas.cache_config import CacheConfig, CorpusConfig, SourceConfig
from schemas.errors import UserError, printable
from teacher_cache.command import output_console
from teacher_cache.corpus import Corpus
from teacher_cache.records import TokenSample
from teacher_cache.teacher import load_tokenizer

LINES = "\n\t"  # kept as they are in texts
DOCUMENTS = 200  # minimum read of each source
LEARNED = ("bold green", "bold bright_green")  # alternating, to show token boundaries
READ = ("", "dim")


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens that make up whole characters; ``learned``: trained on."""

    text: str
    learned: bool
    tokens: int


@dataclass(frozen=True)
class Sequence:
    """One sequence as it would be cached."""

    source_id: str
    layer: str
    tokens: int
    learned: int
    pieces: list[Piece]


@dataclass(frozen=True)
class SourceSummary:
    """Counts for the beginning of a source; ``notes``: log messages, ``problem``: the error that ended reading."""

    path: str
    format: str
    layer: str
    counts: dict[str, int]
    notes: list[str]
    problem: str | None


@dataclass(frozen=True)
class Preview:
    """Some sequences, and counts by source and by layer of the data mix."""

    documents_read: int  # limit per source
    sources: list[SourceSummary]
    layers: dict[str, dict[str, int]]
    sequences: list[Sequence]


def preview(config: CacheConfig, samples: int) -> Preview:
    """Tokenize the beginning of each source and keep ``samples`` sequences, round-robin over the sources.

    Raises UserError if there is no tokenizer; errors in a source go into its summary.
    """
    tokenizer = load_tokenizer(config.teacher)
    at_most = max(DOCUMENTS, 2 * samples)
    summaries, kept = [], []
    layers: dict[str, Counter[str]] = {}
    for number, source in enumerate(config.corpus.sources):
        limit = at_most if source.limit is None else min(source.limit, at_most)
        beginning = source.model_copy(update={"limit": limit})
        summary, sequences = _read(config.corpus, beginning, f"corpus.sources.{number}", tokenizer, samples)
        summaries.append(summary)
        kept.append(sequences)
        layers.setdefault(source.layer, Counter()).update(summary.counts)
    in_turn = [sequence for group in zip_longest(*kept) for sequence in group if sequence is not None]
    return Preview(at_most, summaries, {name: dict(counts) for name, counts in layers.items()}, in_turn[:samples])


def _read(
    config: CorpusConfig, source: SourceConfig, name: str, tokenizer: Any, samples: int
) -> tuple[SourceSummary, list[Sequence]]:
    corpus = Corpus(config.model_copy(update={"sources": [source]}), tokenizer)
    kept: list[Sequence] = []
    counts: Counter[str] = Counter()
    problem = None
    with _noted() as notes:
        try:
            for sample in corpus:
                counts.update(samples=1, tokens=len(sample.input_ids), loss_tokens=int(sample.loss_mask.sum()))
                if len(kept) < samples:
                    kept.append(_sequence(sample, tokenizer))
            counts = Counter(corpus.counts.model_dump())
        except UserError as error:
            problem = str(error).replace("corpus.sources.0", name)
    shown = {name: count for name, count in counts.items() if count}
    notes = [note.removeprefix("corpus.sources.0: ") for note in notes]
    return SourceSummary(source.path, str(source.format), source.layer, shown, notes, problem), kept


@contextmanager
def _noted() -> Iterator[list[str]]:
    """Collect the corpus' log messages in a list instead of logging them."""
    corpus_log = logging.getLogger("teacher_cache.corpus")
    notes: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    level, propagates = corpus_log.level, corpus_log.propagate
    corpus_log.addHandler(handler)
    corpus_log.setLevel(logging.INFO)
    corpus_log.propagate = False
    try:
        yield notes
    finally:
        corpus_log.removeHandler(handler)
        corpus_log.setLevel(level)
        corpus_log.propagate = propagates


def _sequence(sample: TokenSample, tokenizer: Any) -> Sequence:
    pieces = list(_pieces(sample, tokenizer))
    learned = int(sample.loss_mask.sum())
    return Sequence(sample.source_id, sample.layer, len(sample.input_ids), learned, pieces)


def _pieces(sample: TokenSample, tokenizer: Any) -> Iterator[Piece]:
    """Yield the tokens as pieces; tokens that share a character form one piece."""
    data = sample.text.encode()
    learned = np.concatenate([[False], sample.loss_mask[:-1]])  # row t predicts token t + 1
    begin = 0
    for t in range(len(sample.input_ids)):
        start, stop = int(sample.byte_start[begin]), int(sample.byte_end[t])
        try:
            text = data[start:stop].decode()
        except UnicodeDecodeError:
            continue
        if start == stop and begin == t:  # adds nothing to the text: BOS, EOS
            text = str(tokenizer.convert_ids_to_tokens(int(sample.input_ids[t])))
        yield Piece(text, bool(learned[begin : t + 1].any()), t + 1 - begin)
        begin = t + 1


def as_dict(found: Preview) -> dict[str, Any]:
    """The preview as JSON data, with adjacent pieces of equal ``learned`` merged."""
    tree = asdict(found)
    for sequence, original in zip(tree["sequences"], found.sequences, strict=True):
        sequence["pieces"] = [asdict(piece) for piece in _joined(original.pieces)]
    return tree


def _joined(pieces: list[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].learned == piece.learned:
            last = joined.pop()
            piece = Piece(last.text + piece.text, piece.learned, last.tokens + piece.tokens)
        joined.append(piece)
    return joined


def show(found: Preview, tokens: int, console: Console | None = None) -> None:
    """Print the preview, at most ``tokens`` tokens per sequence. Without colours, trained tokens are in ⟦ ⟧."""
    console = console or output_console(highlight=False, soft_wrap=True)
    for sequence in found.sequences:
        title = f"── {sequence.source_id} · {sequence.layer} · {sequence.tokens} tokens, {sequence.learned} learned ──"
        console.print(Text(printable(title), style="bold"))
        console.print(_coloured(sequence, tokens) if console.is_terminal else _bracketed(sequence, tokens))
        console.print()
    console.print(Text(f"Of the first {found.documents_read} documents of each source:"))
    for source in found.sources:
        console.print(_sums(f"{source.path} ({source.format}, layer {source.layer})", source.counts))
        for note in source.notes:
            console.print(Text(f"    · {printable(note)}"))
    for layer, counts in found.layers.items():
        console.print(_sums(f"layer {layer}", counts))


def _sums(label: str, counts: dict[str, int]) -> Text:
    sums = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    return Text(f"  {printable(label)}: {sums or 'nothing'}")


def _coloured(sequence: Sequence, tokens: int) -> Text:
    text = Text()
    for number, piece in enumerate(_first(sequence.pieces, tokens)):
        text.append(printable(piece.text, keep=LINES), (LEARNED if piece.learned else READ)[number % 2])
    return text.append(_rest(sequence, tokens))


def _bracketed(sequence: Sequence, tokens: int) -> Text:
    parts = [
        f"⟦{printable(piece.text, keep=LINES)}⟧" if piece.learned else printable(piece.text, keep=LINES)
        for piece in _joined(_first(sequence.pieces, tokens))
    ]
    return Text("".join(parts) + _rest(sequence, tokens))


def _first(pieces: list[Piece], tokens: int) -> list[Piece]:
    ends = np.cumsum([piece.tokens for piece in pieces])
    return [piece for piece, end in zip(pieces, ends, strict=True) if end <= tokens]


def _rest(sequence: Sequence, tokens: int) -> str:
    left = sequence.tokens - tokens
    return f" … {left} more tokens" if left > 0 else ""
