"""Dumps of log-probabilities as samples (``logprob_lines`` says which).

A row has the k likeliest tokens, k being the fewest that any row of the files names; a token that was added because the
text has it counts as none of them, but gives ``next_logprob``. Log-probabilities are normalised, so log-partitions at
temperature 1 are 0. Where tokens are named by text, each name must be that of one token of the tokenizer: a row is cut
before an entry that is not, so that it remains the likeliest ones, and a row whose first entry is not leaves the loss
mask. The manifest's notes count these rows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from schemas.errors import UserError
from teacher_cache.records import LogitsSample, TokenSample
from tools.bridges.captured_source import CapturedOptions, CapturedSource, realised
from tools.bridges.import_sources import Found
from tools.bridges.lists import check_size
from tools.bridges.logprob_lines import Entries, Line, Name, read_lines, sequences
from tools.bridges.token_names import TokenNames

ABSENT = -9000.0  # servers write −9999 for −inf


class Row(NamedTuple):
    """The likeliest tokens of one row."""

    ids: list[int]
    logprobs: list[float]
    realised: float | None  # log-probability of the token that the text has, where the dump says it


class LogprobsSource(CapturedSource):
    """JSONL of vLLM's ``prompt_logprobs``, or of responses in OpenAI's style."""

    system = "dumps of log-probabilities"
    format = "jsonl"

    def __init__(self, files: list[Path], options: CapturedOptions, tokens_per_shard: int) -> None:
        """Reads the files once, for k. Raises UserError."""
        super().__init__(files, options, tokens_per_shard)
        self._done = 0  # lines
        self._names = TokenNames(self._tokenizer, self._spelling)
        self._k = min((row.top for _, _, line in self._lines() for row in line.rows if row is not None), default=0)
        if self._k < 1:
            raise UserError(f"{files[0]}: no position with log-probabilities; ask for prompt_logprobs or top_logprobs")
        self.check_k()
        self.n_rows, self._done = self._done, 0

    @property
    def k(self) -> int:
        """Entries of a row, at most."""
        return self._k

    def _lines(self) -> Iterator[tuple[Path, str, Line]]:
        self._done = 0
        for file in self.files:
            for number, record in read_lines(file):
                self._done += 1
                for piece, line in enumerate(sequences(record, f"{file}: line {number}")):
                    yield file, f"{number}" + (f".{piece}" if piece else ""), line

    def samples(self) -> Iterator[Found]:
        """One sample per sequence."""
        for file, number, line in self._lines():
            at = f"{file}: line {number}"
            self._counts["documents"] += 1
            found = self._sample(line, f"{file.name}#{number}", at)
            if found is None:
                self._counts["too_short"] += 1
            else:
                yield Found(at, self._done, *found)

    def _sample(self, line: Line, source_id: str, at: str) -> tuple[TokenSample, LogitsSample] | None:
        before = self._ids_before(line, at)
        ids = np.array(before + [self._id(name, at) for name in line.tokens], np.int64)
        if line.labels is not None and len(line.labels) != len(ids):
            raise UserError(f"{at}: {len(line.labels)} labels of {len(ids)} tokens")
        check_size(len(ids), self._k, at)
        learned = np.ones(len(ids), bool) if line.labels is None else np.array(line.labels) >= 0
        rows: dict[int, Row] = {}  # by position
        for index, (entries, own) in enumerate(zip(line.rows, line.own_logprobs, strict=True), start=len(before)):
            if entries is None or index == 0 or not learned[index]:
                continue
            if (row := self._row(entries, int(ids[index]), own)) is not None:
                rows[index - 1] = row
        loss_mask = np.zeros(len(ids), bool)
        loss_mask[[*rows]] = True
        if not len(ids) or (tokens := self.token_sample(ids, loss_mask, source_id, at)) is None:
            return None
        return tokens, self._logits(tokens, rows)

    def _row(self, entries: Entries, realised_id: int, own: float | None) -> Row | None:
        """The row, cut before a token without an id; None if that is the first one."""
        logprobs = np.array(entries.logprobs, np.float64)
        order = np.argsort(-logprobs, kind="stable")
        ids: list[int] = []
        for place in order[: self._k].tolist():
            if logprobs[place] <= ABSENT:
                break
            if (found := self._names.id_of(entries.names[place])) is None:
                self._counts["cut"] += 1
                break
            ids.append(found)
        if own is None:
            named = [self._names.id_of(name) for name in entries.names]
            own = entries.logprobs[named.index(realised_id)] if realised_id in named else None
        return Row(ids, logprobs[order[: len(ids)]].tolist(), own) if ids else None

    def _logits(self, tokens: TokenSample, rows: dict[int, Row]) -> LogitsSample:
        positions = np.array([*rows], np.int32)
        counts = np.array([len(row.ids) for row in rows.values()], np.int32)
        stored_PK = np.arange(self._k) < counts[:, None]
        ids_PK = np.full(stored_PK.shape, -1, np.int64)
        logprobs_PK = np.full(stored_PK.shape, -np.inf, np.float32)
        ids_PK[stored_PK] = np.concatenate([row.ids for row in rows.values()])
        logprobs_PK[stored_PK] = np.concatenate([row.logprobs for row in rows.values()])
        said_P = np.array([row.realised for row in rows.values()], np.float32)  # None is NaN
        next_P = tokens.input_ids[positions + 1]
        guessed_P, _ = realised(ids_PK, logprobs_PK, next_P, self._teacher.vocab_size)
        self._counts["rows"] += len(positions)
        self._counts["estimated"] += int(np.isnan(said_P).sum())
        return LogitsSample(
            num_tokens=len(tokens.input_ids),
            positions=positions,
            counts=counts,
            ids=np.maximum(ids_PK, 0),
            logprobs=logprobs_PK,
            next_logprob=np.minimum(np.where(np.isnan(said_P), guessed_P, said_P), 0),
            log_partition=np.zeros((len(positions), 1), np.float32),
        )

    def _ids_before(self, line: Line, at: str) -> list[int]:
        """Token ids of a prompt that has no rows."""
        if isinstance(line.before, str):
            return list(self._tokenizer(line.before)["input_ids"])
        if line.before and isinstance(line.before[0], dict):
            try:
                return list(
                    self._tokenizer.apply_chat_template(line.before, add_generation_prompt=True, return_dict=False)
                )
            except Exception as error:  # a template can raise anything
                raise UserError(f"{at}: messages: the tokenizer's chat template: {str(error)[:200]}") from None
        return [int(each) for each in line.before]

    def _id(self, name: Name, at: str) -> int:
        found = self._names.id_of(name)
        if found is None:
            raise UserError(
                f"{at}: {name!r:.60} is not the name of exactly one token of the tokenizer; ask for token ids "
                "(return_token_ids or return_tokens_as_token_ids), or give the teacher's own --tokenizer"
            )
        return found

    def notes(self) -> list[str]:
        """How rows were read, cut and estimated."""
        counts = self._counts
        notes = [
            "From dumps of log-probabilities in JSON; of log-partitions only that at temperature 1 is known.",
            f"Of {counts['rows']} rows, the realised token's log-probability is not said at {counts['estimated']}, and "
            "estimated there.",
        ]
        if counts["cut"]:
            notes.append(f"{counts['cut']} rows were cut before a token that the tokenizer does not have exactly once.")
        return notes
