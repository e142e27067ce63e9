"""Batches of sequences for planning, with concatenated arrays, so that loops run in numpy."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from teacher_cache.records import TokenSample


@dataclass(frozen=True)
class TokenBatch:
    """M sequences of N tokens in total; see TokenSample. Lists have one entry per sequence, arrays are concatenated."""

    keys: list[str]
    source_ids: list[str]
    layers: list[str]
    texts: list[bytes]  # UTF-8
    num_tokens: np.ndarray  # int64 [M]
    input_ids: np.ndarray  # uint32 [N]
    loss_mask: np.ndarray  # bool [N]
    byte_start: np.ndarray  # uint32 [N]
    byte_end: np.ndarray  # uint32 [N]
    chats: list[bytes]

    @classmethod
    def of(cls, samples: Sequence[TokenSample]) -> "TokenBatch":
        """Concatenate at least one sample into a batch."""
        return cls(
            keys=[sample.key for sample in samples],
            source_ids=[sample.source_id for sample in samples],
            layers=[sample.layer for sample in samples],
            texts=[sample.text.encode() for sample in samples],
            num_tokens=np.array([len(sample.input_ids) for sample in samples], np.int64),
            input_ids=np.concatenate([sample.input_ids for sample in samples]),
            loss_mask=np.concatenate([sample.loss_mask for sample in samples]),
            byte_start=np.concatenate([sample.byte_start for sample in samples]),
            byte_end=np.concatenate([sample.byte_end for sample in samples]),
            chats=[sample.chat for sample in samples],
        )

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.keys)

    def samples(self) -> Iterator[TokenSample]:
        """Yield the sequences, each with its own arrays."""
        ends = np.cumsum(self.num_tokens)
        for i, (first, end) in enumerate(zip((ends - self.num_tokens).tolist(), ends.tolist(), strict=True)):
            yield TokenSample(
                key=self.keys[i],
                source_id=self.source_ids[i],
                layer=self.layers[i],
                text=self.texts[i].decode(),
                input_ids=self.input_ids[first:end].copy(),
                loss_mask=self.loss_mask[first:end].copy(),
                byte_start=self.byte_start[first:end].copy(),
                byte_end=self.byte_end[first:end].copy(),
                chat=self.chats[i],
            )

    def chosen(self, keep_M: np.ndarray) -> "TokenBatch":
        """The sequences for which ``keep_M``, bool [M], is True."""
        if keep_M.all():
            return self
        keep, keep_N = keep_M.tolist(), np.repeat(keep_M, self.num_tokens)
        return TokenBatch(
            keys=list(compress(self.keys, keep)),
            source_ids=list(compress(self.source_ids, keep)),
            layers=list(compress(self.layers, keep)),
            texts=list(compress(self.texts, keep)),
            num_tokens=self.num_tokens[keep_M],
            input_ids=self.input_ids[keep_N],
            loss_mask=self.loss_mask[keep_N],
            byte_start=self.byte_start[keep_N],
            byte_end=self.byte_end[keep_N],
            chats=list(compress(self.chats, keep)),
        )

    def part(self, first: int, stop: int) -> "TokenBatch":
        """Sequences ``[first, stop)``; arrays are views."""
        begin, end = (int(self.num_tokens[:bound].sum()) for bound in (first, stop))
        return TokenBatch(
            self.keys[first:stop],
            self.source_ids[first:stop],
            self.layers[first:stop],
            self.texts[first:stop],
            self.num_tokens[first:stop],
            self.input_ids[begin:end],
            self.loss_mask[begin:end],
            self.byte_start[begin:end],
            self.byte_end[begin:end],
            self.chats[first:stop],
        )


def joined(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Concatenate at least one batch."""
    return TokenBatch(
        keys=[key for batch in batches for key in batch.keys],
        source_ids=[source_id for batch in batches for source_id in batch.source_ids],
        layers=[layer for batch in batches for layer in batch.layers],
        texts=[text for batch in batches for text in batch.texts],
        num_tokens=np.concatenate([batch.num_tokens for batch in batches]),
        input_ids=np.concatenate([batch.input_ids for batch in batches]),
        loss_mask=np.concatenate([batch.loss_mask for batch in batches]),
        byte_start=np.concatenate([batch.byte_start for batch in batches]),
        byte_end=np.concatenate([batch.byte_end for batch in batches]),
        chats=[chat for batch in batches for chat in batch.chats],
    )


def in_parts(batches: Iterable[TokenBatch], least_tokens: int) -> Iterator[TokenBatch]:
    """Regroup the sequences into parts of as few consecutive ones as have ``least_tokens``; the last may have fewer."""
    waiting: list[TokenBatch] = []
    missing = least_tokens
    for batch in batches:
        ends_M = np.cumsum(batch.num_tokens)
        first = before = 0
        while first < len(batch):
            stop = min(int(np.searchsorted(ends_M, before + missing)) + 1, len(batch))
            waiting.append(batch.part(first, stop))
            missing -= int(ends_M[stop - 1]) - before
            first, before = stop, int(ends_M[stop - 1])
            if missing <= 0:
                yield joined(waiting)
                waiting, missing = [], least_tokens
    if waiting:
        yield joined(waiting)
