"""DistillKit's rows as samples: the teacher, the text, and what DistillKit's files leave out.

Rows excluded by ``labels`` are not stored, nor is the last row of a sequence, which has no next token. A padding token
appended to a sequence is removed, unless it is also the tokenizer's end-of-text token.

Where every log-probability is a float of its own, rows must be in descending order. Where polynomials or quantised
residuals approximate some, they may not be, so entries are sorted. Where the approximations are inconsistent (they sum
to more than 1, or are so small that the missing mass cannot fit on less likely tokens), only the row's exact entries
are kept; the manifest's notes count these rows.

``next_logprob`` is the stored log-probability of the realised token. Where that token has no entry it is an estimate:
the missing mass spread evenly over all other tokens, and at most the last entry's probability. No loss reads it;
evaluations use it for the teacher's cross-entropy. The notes count these rows too.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from schemas.errors import UserError
from teacher_cache.records import LogitsSample, TokenSample
from tools.bridges.captured_source import CapturedOptions, CapturedSource, realised
from tools.bridges.compression import Compression, read_compression
from tools.bridges.distillkit import ABSENT, CONFIG_FILE, Rows, sequences
from tools.bridges.import_sources import Found
from tools.bridges.parquet_files import number_of_rows, open_file, read_blocks

COLUMNS = (
    "input_ids", "labels", "attention_mask", "compressed_logprobs", "bytepacked_indices", "token_ids", "top_values",
    "packed_indices",
)  # fmt: skip
SLACK = 1 / 32  # nats; tolerated error of a stored log-probability


class DistillKitSource(CapturedSource):
    """The output of ``python -m distillkit.sample_logits_vllm``, packed or not."""

    system = "DistillKit's files"

    def __init__(self, files: list[Path], options: CapturedOptions, tokens_per_shard: int) -> None:
        """Raises UserError when the compression settings or the teacher cannot be found."""
        self._compression = _compression(files, options)
        super().__init__(files, options, tokens_per_shard)
        self.n_rows = number_of_rows(files)
        padding = self._tokenizer.pad_token_id
        self._padding = None if padding == self._tokenizer.eos_token_id else padding
        self._k = self._compression.k if self._compression is not None else self._raw_k()
        self.check_k()

    @property
    def k(self) -> int:
        """Entries of a row."""
        return self._k

    def _raw_k(self) -> int:
        """Entries per row of an uncompressed data set."""
        for file in self.files:
            for block in read_blocks(file, COLUMNS):
                for row in sequences(block.rows, None, str(file), block.first_row):
                    if row.ids.size:
                        return row.ids.shape[1]
        raise UserError(f"{self.files[0].parent}: no file holds a row with log-probabilities")

    def samples(self) -> Iterator[Found]:
        """One sample per sequence; a packed row holds several sequences."""
        done = 0
        for file in self.files:
            for block in read_blocks(file, COLUMNS):
                for i in range(block.rows.num_rows):
                    number, done = block.first_row + i, done + 1
                    self._counts["documents"] += 1
                    found = sequences(block.rows.slice(i, 1), self._compression, str(file), number)
                    for piece, row in enumerate(map(self._without_padding, found)):
                        at = f"{file}: row {number}"
                        tokens = self._tokens(row, f"{file.name}#{number}" + (f".{piece}" if piece else ""), at)
                        if tokens is None:
                            self._counts["too_short"] += 1
                            continue
                        yield Found(at, done, tokens, self._logits(row, tokens, at))

    def _without_padding(self, row: Rows) -> Rows:
        """Drop the padding token that DistillKit appends to a sequence when it captures a teacher."""
        n = len(row.ids)
        if n and n < len(row.input_ids) and row.input_ids[-1] == self._padding:
            return row._replace(input_ids=row.input_ids[:n], loss_mask=row.loss_mask[:n])
        return row

    def _tokens(self, row: Rows, source_id: str, at: str) -> TokenSample | None:
        """The sequence's tokens; None where no row is in the loss mask."""
        loss_mask = row.loss_mask.copy()
        loss_mask[min(len(row.input_ids) - 1, len(row.ids)) :] = False
        return self.token_sample(row.input_ids, loss_mask, source_id, at)

    def _logits(self, row: Rows, tokens: TokenSample, at: str) -> LogitsSample:
        positions = np.flatnonzero(tokens.loss_mask).astype(np.int32)
        ids_PK, logprobs_PK = row.ids[positions], row.logprobs[positions]
        if ids_PK.shape[1] != self._k:
            raise UserError(f"{at}: {ids_PK.shape[1]} entries a row, wanted {self._k} as in earlier rows")
        _refuse(np.isnan(logprobs_PK), "a log-probability is not a number", positions, at)
        if self._compression is not None and not self._compression.is_exact:
            ids_PK, logprobs_PK = self._repaired(ids_PK, logprobs_PK, positions, at)
        with np.errstate(invalid="ignore"):  # infinities mark absent entries
            rising_PK = logprobs_PK[:, 1:] > logprobs_PK[:, :-1]
        _refuse(rising_PK, "log-probabilities are not in descending order", positions, at)
        stored_PK = logprobs_PK > ABSENT
        counts = stored_PK.sum(axis=1).astype(np.int32)
        _refuse(counts[:, None] == 0, "in the loss mask, but without an entry", positions, at)
        logprobs_PK = np.where(stored_PK, logprobs_PK, -np.inf).astype(np.float32)
        self._counts["fewer"] += int((counts < self._k).sum())
        stored_ids_PK, next_P = np.where(stored_PK, ids_PK, -1), tokens.input_ids[positions + 1]
        next_logprob, estimated_P = realised(stored_ids_PK, logprobs_PK, next_P, self._teacher.vocab_size)
        self._counts["rows"] += len(positions)
        self._counts["estimated"] += int(estimated_P.sum())
        return LogitsSample(
            num_tokens=len(tokens.input_ids),
            positions=positions,
            counts=counts,
            ids=np.where(stored_PK, ids_PK, 0),
            logprobs=logprobs_PK,
            next_logprob=next_logprob,
            log_partition=np.zeros((len(positions), 1), np.float32),
        )

    def _repaired(
        self, ids_PK: np.ndarray, logprobs_PK: np.ndarray, positions: np.ndarray, at: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of approximations, sorted, or cut to their exact entries; see the module docstring."""
        assert self._compression is not None
        exact_k, outside = self._compression.exact_k, self._teacher.vocab_size - self._k
        order_PK = np.argsort(-logprobs_PK, axis=1, kind="stable")
        sorted_PK = np.take_along_axis(logprobs_PK, order_PK, axis=1)
        with np.errstate(over="ignore"):
            probabilities_PK = np.exp(sorted_PK.astype(np.float64))
        least_P = probabilities_PK.sum(axis=1)
        most_P = least_P + outside * probabilities_PK[:, -1]
        inconsistent_P1 = ((least_P > math.exp(SLACK)) | (most_P < math.exp(-SLACK)))[:, None]
        if exact_k == 0:
            _refuse(inconsistent_P1, "approximated log-probabilities cannot sum to 1", positions, at)
        self._counts["cut"] += int(inconsistent_P1.sum())
        cut_PK = np.where(np.arange(self._k) < exact_k, logprobs_PK, -np.inf)
        ids_PK = np.where(inconsistent_P1, ids_PK, np.take_along_axis(ids_PK, order_PK, axis=1))
        return ids_PK, np.where(inconsistent_P1, cut_PK, sorted_PK).astype(np.float32)

    def notes(self) -> list[str]:
        """How values were compressed, estimated and repaired."""
        compression, counts = self._compression, self._counts
        how = "uncompressed" if compression is None else f"compressed with {_json(compression)}"
        notes = [
            f"From DistillKit's files, log-probabilities {how}; of log-partitions only that at temperature 1 is known.",
            f"Of {counts['rows']} rows, the realised token is not stored at {counts['estimated']}; its "
            "log-probability is estimated there: what the stored probabilities lack of 1, spread evenly over all other "
            "tokens, no more than the last entry's.",
        ]
        if counts["cut"]:
            notes.append(f"{counts['cut']} rows of approximations contradicted themselves: exact entries were kept.")
        if counts["fewer"]:
            notes.append(f"{counts['fewer']} rows have fewer than {self._k} entries.")
        return notes


def _compression(files: list[Path], options: CapturedOptions) -> Compression | None:
    """The compression settings; None if the files are uncompressed."""
    if options.compression_config is not None:
        return read_compression(Path(options.compression_config))
    with open_file(files[0]) as opened:
        if "compressed_logprobs" not in opened.schema_arrow.names:
            return None
    return read_compression(files[0].parent / CONFIG_FILE)


def _json(compression: Compression) -> str:
    return json.dumps(compression.model_dump(mode="json", exclude_defaults=True))


def _refuse(wrong_PX: np.ndarray, what: str, positions: np.ndarray, at: str) -> None:
    """Raise UserError with ``what`` if any row has a True, naming the first such position."""
    rows = np.flatnonzero(wrong_PX.any(axis=1))
    if len(rows):
        raise UserError(f"{at}: token {positions[rows[0]]}: {what}")
