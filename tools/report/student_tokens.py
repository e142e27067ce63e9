"""What a student with another tokenizer would be taught, for the page: shares by kind, and two rows of tokens per text.

A text is cut where both tokenizers have a border. Each piece has the teacher's tokens and the student's over the same
bytes; a token that lies on no text of the other side (of a template or a prompt) has a piece of its own, with one row.
"""

from typing import Any, NamedTuple

import numpy as np

from teacher_cache.corpus.token_spans import vocabulary_table
from teacher_cache.records import TokenSample
from teacher_cache.retarget.retargeter import Retargeted
from teacher_cache.retarget.row_targets import TAUGHT, Kind
from teacher_cache.token_table import TokenTable
from tools.looking.align import KIND_NAMES, Aligner, Alignment
from tools.report.token_text import MOST_CHARACTERS, token_text

MEASURED_SAMPLES = 200  # for the shares
SHOWN_SAMPLES = 4  # token by token
MOST_STUDENT_TOKENS = 256  # of a sample
LEAD = 32  # tokens shown before the first that is learned
BEST = 5  # weights of a row
ARMS = {
    "strict": "the same bytes on both sides",
    "border": "and what begins where a teacher token does",
    "all": "and what begins inside one",
}


class Piece(NamedTuple):
    """Tokens of both sides over the same bytes."""

    teacher: list[int]  # places in the teacher's sequence
    student: list[int]


def shares(alignment: Alignment) -> dict[str, Any]:
    """Tables of the shares, as text."""
    found = alignment.summary()
    learned = max(1, found["learned_student_tokens"])
    kinds = [
        {
            "name": name,
            "colour": kind.name.lower(),
            "count": f"{found['kinds'][kind.name.lower()]:,}",
            "share": f"{found['kinds'][kind.name.lower()] / learned:.1%}",
        }
        for kind, name in KIND_NAMES.items()
    ]
    return {
        "kinds": kinds,
        "arms": [{"name": arm, "what": what, "share": f"{found['taught'][arm]:.1%}"} for arm, what in ARMS.items()],
        "crossing": f"{found['crossing'] / learned:.1%}",
        "mapped": f"{found['mapped_mass']:.1%}",
        "samples": f"{found['samples']:,}",
        "left_out": f"{found['samples_left_out']:,}",
        "student_tokens": f"{found['student_tokens']:,}",
        "teacher_tokens": f"{found['teacher_tokens']:,}",
    }


def viewer_samples(aligner: Aligner, numbers: list[int]) -> list[dict[str, Any]]:
    """The first of these samples that the student can read, for the page. Raises CorruptCacheError."""
    spelling = vocabulary_table(aligner.tokenizer)
    found: list[dict[str, Any]] = []
    for number in numbers:
        aligned = aligner.read(number)
        if aligned.found is not None and aligned.found.text.loss_mask_J.any():
            found.append(viewer_sample(aligned.sample, aligned.found, spelling))
        if len(found) == SHOWN_SAMPLES:
            break
    return found


def viewer_sample(sample: TokenSample, found: Retargeted, spelling: TokenTable) -> dict[str, Any]:
    """One sample: its pieces, each with the tokens of both sides. ``spelling``: bytes of the student's tokens."""
    text, targets, data = found.text, found.targets, sample.text.encode()
    learned_J = np.append(False, text.loss_mask_J[:-1])
    first = max(0, int(learned_J.argmax()) - LEAD)
    stop = min(len(text.ids_J), first + MOST_STUDENT_TOKENS)
    start_J, end_J = text.tokens.start_J, text.tokens.end_J

    def student(j: int) -> dict[str, Any]:
        kind = Kind(int(targets.kind_J[j]))
        on_text = start_J[j] >= 0 and not text.tokens.is_stop_J[j]
        shown, raw = (
            token_text(data, int(start_J[j]), int(end_J[j])) if on_text else (_spelled(spelling, text.ids_J[j]), "")
        )
        token = {"text": shown, "id": int(text.ids_J[j]), "kind": list(KIND_NAMES).index(kind)}
        if raw:
            token["raw"] = raw
        if not learned_J[j]:
            return token | {"learned": 0}
        if kind in TAUGHT:
            used = np.flatnonzero(targets.weights_JE[j][:BEST] > 0)
            weights = np.rint(10_000 * targets.weights_JE[j][used]).astype(int).tolist()
            names = [_spelled(spelling, index) for index in targets.ids_JE[j][used]]
            token["best"] = [
                [int(i), name, p] for i, name, p in zip(targets.ids_JE[j][used], names, weights, strict=True)
            ]
            token["rest"] = round(10_000 * max(0.0, 1 - float(targets.weights_JE[j][used].sum())))
            token |= {"crosses": 1} if targets.crosses_J[j] else {}
        return token

    def teacher(t: int) -> dict[str, Any]:
        shown, raw = token_text(data, int(sample.byte_start[t]), int(sample.byte_end[t]))
        return {"text": shown, "id": int(sample.input_ids[t])} | ({"raw": raw} if raw else {})

    return {
        "key": sample.key,
        "layer": sample.layer[:200],
        "source": sample.source_id[:200],
        "tokens": [len(sample.input_ids), len(text.ids_J)],
        "shown": stop - first,
        "pieces": [
            {"teacher": [teacher(t) for t in piece.teacher], "student": [student(j) for j in piece.student]}
            for piece in pieces(sample, found, first, stop)
        ],
    }


def pieces(sample: TokenSample, found: Retargeted, first: int, stop: int) -> list[Piece]:
    """The tokens [first, stop) of the student and the teacher's over the same stretch, cut at common borders."""
    start_J, end_J = found.text.tokens.start_J.tolist(), found.text.tokens.end_J.tolist()
    start_S, end_S = sample.byte_start.tolist(), sample.byte_end.tolist()
    on_text = [j for j in range(first, stop) if start_J[j] >= 0]
    t = 0 if first == 0 or not on_text else _first_over(end_S, start_J[on_text[0]])
    last = len(start_S) if stop == len(start_J) else _first_over(end_S, end_J[on_text[-1]] - 1) + 1 if on_text else t
    result: list[Piece] = []
    j = first
    while j < stop:
        own: list[int] = []
        while j < stop and start_J[j] < 0:
            own.append(j)
            j += 1
        at = start_J[j] if j < stop else len(sample.text.encode()) + 1
        ends = t
        while ends < last and end_S[ends] <= at and not (start_S[ends] == at and j < stop):
            ends += 1
        result += [Piece([alone], []) for alone in range(t, ends)] + [Piece([], [alone]) for alone in own]
        t = ends
        if j == stop:
            break
        over, under, reach, covered = [], [j], end_J[j], at
        j += 1
        if reach == at and t < last and start_S[t] == at:  # a stop token beside the teacher's
            over.append(t)
            t += 1
        while True:
            if covered < reach and t < last and start_S[t] < reach:
                over.append(t)
                covered = max(covered, end_S[t])
                t += 1
            elif reach < covered and j < stop and 0 <= start_J[j] < covered and end_J[j] > start_J[j]:
                under.append(j)
                reach = max(reach, end_J[j])
                j += 1
            else:
                break
        result.append(Piece(over, under))
    return result + [Piece([alone], []) for alone in range(t, last)]


def _first_over(end_S: list[int], byte: int) -> int:
    """The first token that ends after ``byte``."""
    return int(np.searchsorted(np.maximum.accumulate(end_S), byte, side="right"))


def _spelled(table: TokenTable, index: int) -> str:
    return table.token(int(index)).decode("utf-8", "backslashreplace")[:MOST_CHARACTERS]
