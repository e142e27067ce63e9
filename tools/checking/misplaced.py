"""Causes of contradictions between rows and tokens, reported once per shard: rows shifted, swapped, or truncated.

Rows stored at a wrong token contradict it (``signals.logits.consistency``). If they are consistent with another token,
of the same sample or of another sample, they belong there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from schemas.manifest import Manifest
from teacher_cache.records import LogitsSample, TokenSample
from teacher_cache.signals.logits.consistency import (
    NO_TOKEN,
    OF_ANOTHER_TOKEN,
    Rows,
    contradictions,
    of_another_token,
    rows_of_sample,
)

NOT_STORED = "it counts, and is not stored"
KEPT = 32  # contradictory samples per shard that are kept for an explanation
TRIED = 8  # of those, samples whose rows are searched for in other samples
SHIFTS = (-1, 1, -2, 2)
EXPLAINED = 0.1  # fraction of the contradictions that an explanation may leave


@dataclass
class _Kind:
    """One kind of problem in a shard: a line on the first sample that has it, and the number of samples."""

    line: str
    samples: int = 0


@dataclass
class Kinds:
    """The kinds of problems of one tar."""

    tar: str
    by_name: dict[str, _Kind] = field(default_factory=dict)

    def add(self, key: str, what: str, line: str) -> None:
        """Count a problem of kind ``what`` of the sample ``key``; the first one's ``line`` is reported."""
        self.by_name.setdefault(what, _Kind(f"sample {key}: {line}")).samples += 1

    def said(self) -> Iterator[str]:
        """One line per kind."""
        for kind in self.by_name.values():
            more = f", and in {kind.samples - 1} more samples" if kind.samples > 1 else ""
            yield f"{self.tar}: {kind.line}{more}"


@dataclass
class Doubts:
    """Contradictions in one shard's samples; ``kinds`` names the tar of its logits."""

    kinds: Kinds
    manifest: Manifest
    _kept: list[tuple[TokenSample, LogitsSample]] = field(default_factory=list)
    _unread: list[TokenSample] = field(default_factory=list)
    _wrong: int = 0  # samples that contradict their tokens
    _cut: list[str] = field(default_factory=list)  # keys of samples whose last rows are missing

    def look_at(self, tokens: TokenSample, logits: LogitsSample) -> None:
        """Check a sample and record its problems."""
        problems = problems_of(tokens, logits, self.manifest)
        if not problems.keys().isdisjoint(OF_ANOTHER_TOKEN):
            self._wrong += 1
            if len(self._kept) < KEPT:
                self._kept.append((tokens, logits))
        if NOT_STORED in problems and problems[NOT_STORED][0] > logits.positions.max(initial=-1):
            self._cut.append(tokens.key)
        for what, rows in problems.items():
            self.kinds.add(tokens.key, what, said_of_rows(what, rows))

    def not_read(self, tokens: TokenSample) -> None:
        """Record a sample whose rows cannot be decoded; its rows may be stored in another sample."""
        self._unread.append(tokens)

    def said(self) -> Iterator[str]:
        """The problems, one line per kind, and one line for all that an explanation covers."""
        kinds = dict(self.kinds.by_name)
        explanation = self._shift() or self._swap()
        if explanation:
            yield f"{self.kinds.tar}: {explanation} (in {_samples(self._wrong)} {self._kept[0][0].key})"
            for what in (*OF_ANOTHER_TOKEN, NOT_STORED):
                kinds.pop(what, None)
        elif self._cut and kinds[NOT_STORED].samples == len(self._cut):
            samples = f"{_samples(len(self._cut))} {self._cut[0]}"
            yield f"{self.kinds.tar}: rows are truncated: the last rows that count are not stored (in {samples})"
            del kinds[NOT_STORED]
        yield from Kinds(self.kinds.tar, kinds).said()

    def _shift(self) -> str:
        """Message on a shift that explains nearly all kept samples; '' if none does."""
        all_rows = [rows_of_sample(*pair) for pair in self._kept]
        for shift in SHIFTS:
            moved = [_moved(rows, shift) for rows in all_rows]
            here = [rows._replace(next_ids_N=_inside(rows.next_ids_N, abs(shift))) for rows in all_rows]
            if _explains(moved, here, self.manifest):
                by = "one" if abs(shift) == 1 else str(abs(shift))
                token = "token" if abs(shift) == 1 else "tokens"
                where = "later" if shift > 0 else "before"
                return f"rows are shifted by {by}: each is the teacher's of {by} {token} {where}"
        return ""

    def _swap(self) -> str:
        """Message on the sample that the rows of most kept samples belong to; '' if none is found."""
        owners = [tokens for tokens, _ in self._kept] + self._unread
        pairs = []
        tried = self._kept[:TRIED]
        for tokens, logits in tried:
            here = rows_of_sample(tokens, logits)
            for owner in owners[: 2 * KEPT]:
                fits = owner is not tokens and logits.positions.max(initial=0) < len(owner.input_ids) - 1
                if fits and _explains([rows_of_sample(owner, logits)], [here], self.manifest):
                    pairs.append((tokens.key, owner.key))
                    break
        if 2 * len(pairs) <= len(tried):
            return ""
        return f"rows are swapped between samples: those of sample {pairs[0][0]} belong to sample {pairs[0][1]}"


def problems_of(tokens: TokenSample, logits: LogitsSample, manifest: Manifest) -> dict[str, np.ndarray]:
    """Contradictions in a sample: rows of the sequence by kind of problem."""
    counting = np.flatnonzero(tokens.loss_mask)
    missing = counting[~np.isin(counting, logits.positions)]
    problems = {NOT_STORED: missing} if len(missing) else {}
    found = contradictions(rows_of_sample(tokens, logits), manifest)
    return problems | {what: logits.positions[wrong_P] for what, wrong_P in found}


def said_of_rows(what: str, rows: np.ndarray) -> str:
    """A kind of problem with its first row and its number of rows."""
    return f"row {rows[0]}: {what}" + (f" ({len(rows)} rows)" if len(rows) > 1 else "")


def _samples(n: int) -> str:
    return f"{n} samples, first" if n > 1 else "sample"


def _moved(rows: Rows, shift: int) -> Rows:
    """The rows with the next tokens of the rows ``shift`` later."""
    return rows._replace(next_ids_N=_inside(np.roll(rows.next_ids_N, -shift), abs(shift)))


def _inside(next_ids_N: np.ndarray, edge: int) -> np.ndarray:
    """The same with NO_TOKEN at ``edge`` rows at either end, which are then not checked."""
    n = np.arange(len(next_ids_N))
    return np.where((n >= edge) & (n < len(next_ids_N) - edge), next_ids_N, NO_TOKEN)


def _explains(moved: list[Rows], here: list[Rows], manifest: Manifest) -> bool:
    """Whether rows stop contradicting their tokens when they are assigned to other ones (``moved``)."""
    before = sum(int(of_another_token(rows, manifest).sum()) for rows in here)
    after = sum(int(of_another_token(rows, manifest).sum()) for rows in moved)
    found = sum(int((rows.ids_NK == rows.next_ids_N[:, None]).any(axis=1).sum()) for rows in moved)
    return found > 0 and after <= EXPLAINED * before and before > 0
