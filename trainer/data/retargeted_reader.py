"""Read a cache that was made with another tokenizer as if a teacher with the student's had written it.

Texts are tokenised again and the teacher's rows become weights on the student's tokens (``teacher_cache.retarget``),
sample by sample, in the process that reads. Everything behind the reader (order, packing, batches, losses) sees the
student's tokens alone. A cut sample is exact: in a causal model what follows changes no earlier row.

Shape letters: J student tokens, E weights of a row.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from schemas.chat_record import ChatRecord
from schemas.errors import CorruptCacheError, UserError
from schemas.manifest import ShardIndex, Signal
from teacher_cache.codec.samples import Columns, fill_padding
from teacher_cache.corpus.documents import BadRecord
from teacher_cache.records import LogitsSample, Pieces, RowBatch, TokenSample
from teacher_cache.retarget.retargeter import Retargeter, teacher_tokens, with_draws
from teacher_cache.retarget.row_targets import Align, RowTargets
from teacher_cache.retarget.student_text import StudentText
from teacher_cache.shards.batch import PADDING, Place, allocate_rows, entries_of
from teacher_cache.shards.chats import chat_of
from teacher_cache.shards.storage import VOCABULARY, Storage
from teacher_cache.shards.vocabulary_file import read_vocabulary
from teacher_cache.signals.hidden.record import HiddenBatch, HiddenSample
from teacher_cache.signals.logits.consistency import rows_of_sample
from teacher_cache.signals.side_table import SIDE_SIGNALS
from trainer.data.alignment import FIRST, LATER, CheckedReader, explained, problem_of, refused
from trainer.data.kept_texts import KeptTexts
from trainer.data.student_side import RowForm, StudentSide, as_students
from trainer.data.wrapped_reader import WrappedReader

logger = logging.getLogger(__name__)
LEAST_SPELLED = 0.5  # of a sample's tokens; a normaliser that changes letters leaves more
LEAST_ROWS = 1024  # of a teacher, of which at least one must teach
SHARDS_KEPT = 256  # whose samples' lengths and kept texts are remembered


class Sample(NamedTuple):
    """A sample in the student's tokens, with the teacher's weights. Row j predicts token j + 1."""

    ids_J: np.ndarray  # int64
    loss_mask_J: np.ndarray  # bool
    target_ids_JE: np.ndarray  # int32
    weights_JE: np.ndarray  # float64
    pieces_J: Pieces | None = None  # if read
    dense_J: np.ndarray | None = None  # uint8; the token map of rows that ``final`` has whole, 0 for others
    final: HiddenSample | None = None  # at these rows


class RetargetedReader(WrappedReader):
    """Implements ``Cache`` for a student with another tokenizer."""

    def __init__(self, cache: CheckedReader, side: StudentSide, rows: RowForm) -> None:
        """``cache`` must be open for the signals that ``rows.form`` is made of. Raises UserError."""
        if cache.manifest.vocabulary is None:
            raise UserError(
                f"{cache.url}: has no vocabulary.arrow (format 1.{cache.manifest.format_minor}), so it cannot teach a "
                "student with another tokenizer; add it with `cache-tools upgrade`"
            )
        super().__init__(cache, as_students(cache.manifest, side, rows))
        self.signals: tuple[Signal, ...] = ("tokens", "logits", *self.manifest.capture.side_settings)
        self._side, self._rows = side, rows
        self._first = np.cumsum([0, *cache.shard_sizes])
        self._reads = self._rows_read = self._rows_taught = 0
        self._refused_a_chat = False
        self._prepare()

    def _prepare(self) -> None:
        self._lengths = lru_cache(SHARDS_KEPT)(self._lengths_of)
        self._kept_texts = lru_cache(SHARDS_KEPT)(self._kept_texts_of)

    def __getstate__(self) -> dict[str, object]:
        remade = ("_lengths", "_kept_texts", "_retarget", "_kept")
        return {name: value for name, value in vars(self).items() if name not in remade}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._prepare()

    @cached_property
    def _retarget(self) -> Retargeter:
        vocabulary = read_vocabulary(Storage(self.url), self._cache.manifest)
        return Retargeter(vocabulary, self._side.tokenizer, self._rows.align)

    @cached_property
    def _kept(self) -> KeptTexts | None:
        kept = self._side.kept
        return None if kept is None else KeptTexts(kept, self._side.digest, self._side.info.vocab_size)

    def index(self, shard: int) -> ShardIndex:
        """Index of a shard with lengths in the student's tokens; the first call tokenises all of it."""
        return self._cache.index(shard).model_copy(update={"num_tokens": self._lengths(shard)})

    @property
    def whole_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """The student token that each teacher token stands for, int32 [U]; -1: none. In texts, and in chats."""
        return self._retarget.whole_tokens

    @property
    def common_tokens(self) -> np.ndarray | None:
        """The common token of each of the student's tokens, int32 [V], if rows are in classes."""
        return self._retarget.common_tokens

    def read_rows(self, rows: Sequence[Sequence[int]], length: int | None = None) -> RowBatch:
        """As ``CacheReader.read_rows``, in the student's tokens."""
        number, self._reads = self._reads, self._reads + 1
        checked = number < FIRST or number % LATER == 0
        try:
            found = [[self._sample(position, checked) for position in row] for row in rows]
        except CorruptCacheError as error:
            raise explained(error, self.url) from None
        filled = [sum(len(sample.ids_J) for sample in row) for row in found]
        n_tokens = max(filled, default=0) if length is None else length
        batch = allocate_rows(len(rows), n_tokens, self._rows.entries, 1)
        if self._rows.with_pieces:
            shape = batch.input_ids.shape
            batch = replace(batch, pieces=Pieces(np.zeros(shape, np.int32), np.zeros(shape, np.float32)))
        if self._rows.align == Align.CLASSES:
            batch = replace(batch, classes=np.zeros(batch.input_ids.shape, np.int16))
        if "final" in self.signals:
            batch = replace(batch, dense=np.zeros(batch.input_ids.shape, np.uint8), side={"final": self._final(found)})
        for r, row in enumerate(found):
            start = 0
            for sample in row:
                self._fill(batch, r, start, sample)
                start += len(sample.ids_J)
            fill_padding(Columns.of(batch), r, start, n_tokens)
        return batch

    def _final(self, found: Sequence[Sequence[Sample]]) -> HiddenBatch:
        """Final hidden states of all rows that have them whole."""
        kind, capture = SIDE_SIGNALS["final"], self.manifest.capture.side_settings["final"]
        samples: list[Any] = [kind.empty(capture, self.manifest)]
        places = [Place(PADDING, 0, slice(0, 0))]
        for r, row in enumerate(found):
            start = 0
            for sample in row:
                if sample.final is not None:
                    samples.append(sample.final)
                    places.append(Place(PADDING, r, slice(start, start + len(sample.ids_J))))
                start += len(sample.ids_J)
        return kind.join(samples, entries_of(places, samples))

    def _fill(self, batch: RowBatch, r: int, start: int, sample: Sample) -> None:
        n_tokens, n_entries = len(sample.ids_J), sample.weights_JE.shape[1]
        span = slice(start, start + n_tokens)
        batch.input_ids[r, span] = sample.ids_J
        batch.position_ids[r, span] = np.arange(n_tokens)
        batch.attention_mask[r, span] = True
        batch.loss_mask[r, span] = sample.loss_mask_J
        batch.ids[r, span, :n_entries] = sample.target_ids_JE
        batch.ids[r, span, n_entries:] = 0
        with np.errstate(divide="ignore"):
            batch.logprobs[r, span, :n_entries] = self._rows.temperature * np.log(sample.weights_JE)
        batch.logprobs[r, span, n_entries:] = -np.inf
        batch.next_logprob[r, span] = np.nan
        batch.log_partition[r, span] = 0
        if batch.classes is not None:
            batch.classes[r, span] = 1
        if batch.dense is not None and sample.dense_J is not None:
            batch.dense[r, span] = sample.dense_J
        if batch.pieces is not None and sample.pieces_J is not None:
            for of_batch, of_sample in zip(batch.pieces, sample.pieces_J, strict=True):
                of_batch[r, span] = of_sample

    def _sample(self, position: int, checked: bool) -> Sample:
        tokens, logits = self._cache.read_tokens(position), self._cache.read_logits(position)
        drawn = None
        if self._rows.form == "draws":
            drawn = self._cache.read_draws(position)
            if not np.array_equal(drawn.positions, logits.positions):
                where = self._cache.where(position, "draws")
                raise CorruptCacheError(f"{where}: {len(drawn.positions)} rows are not those of the logits")
        if checked:
            self._check(position, tokens, logits, drawn)
        elif _not_stored(tokens, logits).any():
            raise CorruptCacheError(f"{self._cache.where(position, 'logits')}: lacks rows that count")
        text = self._text(position, tokens)
        if text is None:
            self._count(tokens, 0)
            return self._left_out()
        rows, capture = self._rows, self._cache.manifest.capture
        column = capture.logits.temperatures.index(rows.temperature)
        teacher = teacher_tokens(tokens, logits, column, rows.temperature)
        if drawn is not None:
            assert capture.draws is not None
            at = capture.draws.temperatures.index(rows.temperature)
            teacher = with_draws(teacher, drawn.ids[:, at], capture.draws.region)
        targets = self._retarget.targets(teacher, text)
        found = self._shifted(text, targets)
        self._count(tokens, int((found.weights_JE[:, 0] > 0).sum()))
        if rows.form == "final":
            found = self._with_final(found, self._cache.read_final(position), logits, targets, text.is_chat)
        if not rows.with_pieces:
            return found
        pieces = self._retarget.pieces(teacher, text, logits)
        shifted = [np.append(array[1:], array.dtype.type(0))[: len(found.ids_J)] for array in pieces]
        return found._replace(pieces_J=Pieces(*shifted))

    def _count(self, tokens: TokenSample, taught: int) -> None:
        """Raise UserError if nothing that was read is taught: training would run, and learn nothing."""
        self._rows_read += int(tokens.loss_mask.sum())
        self._rows_taught += taught
        if self._rows_taught == 0 and self._rows_read >= LEAST_ROWS:
            raise UserError(
                f"{self.url}: none of the first {self._rows_read} rows teaches a token of the student: its tokenizer "
                f"changes the text, or its chat template refuses the chats; see `cache-tools align {self.url} "
                f"{self._side.folder}`"
            )

    def _shifted(self, text: StudentText, targets: RowTargets) -> Sample:
        """What is known of token j + 1 belongs to row j, which predicts it."""
        n_tokens = len(text.ids_J)
        weights_JE, ids_JE = np.zeros_like(targets.weights_JE), np.zeros_like(targets.ids_JE)
        weights_JE[:-1], ids_JE[:-1] = targets.weights_JE[1:], targets.ids_JE[1:]
        loss_mask_J = text.loss_mask_J.copy()
        cut = n_tokens if self._side.max_tokens is None else min(n_tokens, self._side.max_tokens)
        loss_mask_J[cut - 1 :] = False
        weights_JE[~loss_mask_J] = 0
        if not self._rows.with_untaught:
            loss_mask_J &= weights_JE[:, 0] > 0
        return Sample(text.ids_J[:cut], loss_mask_J[:cut], ids_JE[:cut], weights_JE[:cut])

    def _with_final(
        self, found: Sample, final: HiddenSample, logits: LogitsSample, targets: RowTargets, is_chat: bool
    ) -> Sample:
        """The sample with the final hidden states of rows that are whole distributions of the teacher."""
        row_J = np.append(targets.whole_row_J[1:], -1)[: len(found.ids_J)]
        row_J[~found.loss_mask_J] = -1
        whole_j = np.flatnonzero(row_J >= 0)
        position_j = logits.positions[row_J[whole_j]]
        at_j = np.searchsorted(final.positions, position_j)
        stored_j = np.isin(position_j, final.positions)
        whole_j, at_j = whole_j[stored_j], at_j[stored_j]
        arrays = {name: array[at_j] for name, array in vars(final).items() if name != "positions"}
        dense_J = np.zeros(len(found.ids_J), np.uint8)
        dense_J[whole_j] = 2 if is_chat else 1
        return found._replace(dense_J=dense_J, final=HiddenSample(positions=whole_j.astype(np.int32), **arrays))

    def _left_out(self) -> Sample:
        """In place of a sample that the student cannot read: one token, from which nothing is learned."""
        stop = max(0, self._side.tokenizer.text_stop)
        nothing_1E = np.zeros((1, 1))
        return Sample(np.array([stop]), np.zeros(1, bool), nothing_1E.astype(np.int32), nothing_1E)

    def _lengths_of(self, shard: int) -> list[int]:
        limit = self._side.max_tokens
        texts = self._kept_texts(shard) or [self._read_or_none(position) for position in self._positions(shard)]
        lengths = [1 if text is None else len(text.ids_J) for text in texts]
        return lengths if limit is None else [min(length, limit) for length in lengths]

    def _positions(self, shard: int) -> range:
        first, end = self._first[shard : shard + 2].tolist()
        return range(first, end)

    def _kept_texts_of(self, shard: int) -> Sequence[StudentText | None] | None:
        """All texts of a shard, kept on disk; None if that is not asked for, or a sample of the shard is damaged."""
        if self._kept is None:
            return None
        vocabulary = self._cache.manifest.vocabulary  # says which tokens stop a text
        assert vocabulary is not None
        digest = f"{self._cache.shard_digest(shard)} {vocabulary.sha256}"
        positions = self._positions(shard)
        try:
            return self._kept.of_shard(digest, lambda: [self._read(p, self._cache.read_tokens(p)) for p in positions])
        except CorruptCacheError:
            return None

    def _read_or_none(self, position: int) -> StudentText | None:
        """A text; None if it is damaged, which is reported where the sample is needed."""
        try:
            return self._read(position, self._cache.read_tokens(position))
        except CorruptCacheError:
            return None

    def _text(self, position: int, tokens: TokenSample) -> StudentText | None:
        shard = int(np.searchsorted(self._first, position, side="right")) - 1
        texts = self._kept_texts(shard)
        if texts is None:
            return self._read(position, tokens)
        text = texts[position - int(self._first[shard])]
        if text is not None and text.tokens.end_J.max(initial=0) > len(tokens.text.encode()):
            raise UserError(f"{self._side.kept}: a kept text is longer than that of sample {tokens.key}; remove it")
        return text

    def _read(self, position: int, tokens: TokenSample) -> StudentText | None:
        """Tokenise a sample; None if it cannot be read, which is logged once."""
        chat: ChatRecord | None = chat_of(tokens, self._cache.where(position, "tokens"))
        try:
            return self._retarget.read(tokens, chat)
        except BadRecord as error:
            if not self._refused_a_chat:
                self._refused_a_chat = True
                logger.warning(
                    "%s: left out, as others of the kind will be (`cache-tools align` counts them): %s", self.url, error
                )
            return None

    def _check(self, position: int, tokens: TokenSample, logits: LogitsSample, drawn: object) -> None:
        """Raise UserError where rows contradict their tokens."""
        manifest = self._cache.manifest
        missing_S = _not_stored(tokens, logits)
        if missing_S.any():
            problem = f"{missing_S.sum()} of {tokens.loss_mask.sum()} rows that count are not stored"
            raise refused(self._cache.where(position, "logits"), problem, self.url)
        problem = problem_of(rows_of_sample(tokens, logits), 0, manifest)
        if problem:
            raise refused(self._cache.where(position, "logits"), problem, self.url)
        if self._retarget.spelled_share(tokens) < LEAST_SPELLED:
            raise UserError(
                f"{self._cache.where(position, 'tokens')}: most tokens of {VOCABULARY} do not spell the text: it is of "
                "another teacher, or the text has changed; make the cache again"
            )
        if drawn is not None:
            kind = SIDE_SIGNALS["draws"]
            for what, rows in kind.contradictions(drawn, logits, manifest.capture.draws, manifest):
                raise refused(self._cache.where(position, "draws"), f"{what} (at {len(rows)} rows)", self.url)


def _not_stored(tokens: TokenSample, logits: LogitsSample) -> np.ndarray:
    """Rows that count and are missing, bool [S]."""
    counting_S = tokens.loss_mask.copy()
    counting_S[logits.positions] = False
    return counting_S
