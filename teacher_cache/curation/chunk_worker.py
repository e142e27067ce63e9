"""What a process does with one chunk: apply steps to its records, or sketch them. Always the same bytes."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from schemas.curate_config import CurateConfig
from schemas.curated_manifest import READING, Amount, RemovedFile
from schemas.generated_manifest import ContentEntry
from teacher_cache.curated.curated_place import CuratedRow, shard_file
from teacher_cache.curation import stages
from teacher_cache.curation.count_tokens import TokenCounter
from teacher_cache.curation.curation_step import GlobalStep, LocalStep, StepPlace
from teacher_cache.curation.record import Record
from teacher_cache.curation.record_rows import from_row, to_row
from teacher_cache.curation.stages import ChunkMark, SketchMark, Stage
from teacher_cache.curation.step_tally import StepTally, amount_of, flags_set, tally_of
from teacher_cache.curation.steps_table import open_step
from teacher_cache.generated.reply_files import read_rows, write_rows
from teacher_cache.shards.lease import Lease
from teacher_cache.shards.storage import Storage

Left = list[tuple[Record, str, str]]  # record, step, reason


class ChunkWorker:
    """Does chunks of any stage. The tokenizer, and what steps need, are opened when first needed and kept."""

    def __init__(self, config: CurateConfig, scratch: str, layers: tuple[str, ...]) -> None:
        """Raises UserError for settings of steps that cannot work."""
        self._config, self._layers = config, layers
        self._scratch, self._output = Storage(scratch), Storage(config.output.path)
        self._roles = config.input.roles_to_train
        self.steps = [
            open_step(settings, StepPlace(step_key(index), config.tokenizer.path, layers, scratch))
            for index, settings in enumerate(config.steps)
        ]
        self._stages = stages.stages_of(self.steps)

    @contextmanager
    def fenced(self, lease: Lease) -> Iterator[None]:
        """Within the block nothing is written once the lease is lost."""
        places = self._scratch, self._output
        self._scratch, self._output = (place.fenced(lease) for place in places)
        try:
            yield
        finally:
            self._scratch, self._output = places

    @cached_property
    def _counter(self) -> TokenCounter:
        return TokenCounter(self._scratch.read(stages.TOKENIZER).decode())

    def read(self, chunk: int, records: Sequence[tuple[Record, str]]) -> None:
        """Write a chunk of the input: stage 0."""
        stay = [record for record, reason in records if not reason]
        left: Left = [(record, "input", reason) for record, reason in records if reason]
        entered = amount_of([record for record, _ in records])
        tally = tally_of(READING, "input", entered, stay, [(record, reason) for record, _, reason in left])
        self._commit(0, chunk, stay, left, [tally])

    def transform(self, stage: Stage, chunk: int, first: int) -> None:
        """Apply the steps of ``stage``; ``first``: place of the chunk's first record among all that reach the stage."""
        left: Left = []
        tallies: list[StepTally] = []
        records = self._records(stage.number - 1, chunk)
        if stage.number == 1:
            records = self._counter.counted(records)
        if stage.decided is not None:
            records, tally = self._decided(stage, records, first, left)
            tallies.append(tally)
        for index in stage.local:
            records, tally = self._applied(index, records, left)
            tallies.append(tally)
        self._commit(stage.number, chunk, records, left, tallies)

    def sketch(self, stage: Stage, chunk: int, first: int, total: int) -> None:
        """Write the sketches and the columns of a chunk of ``stage`` into the files of all ``total`` records."""
        assert stage.following is not None
        step = self.steps[stage.following]
        assert isinstance(step, GlobalStep)
        records = self._records(stage.number, chunk)
        sketch_N = np.ascontiguousarray(step.sketch(records))
        if len(sketch_N) != len(records) or sketch_N.dtype.hasobject:
            raise TypeError(f"{type(step).__name__}.sketch: {sketch_N.shape} of {sketch_N.dtype} for {len(records)}")
        layers = {layer: index for index, layer in enumerate(self._layers)}
        columns = [(record.number, record.source, layers[record.layer], record.n_tokens) for record in records]
        rows = np.array(columns, stages.TABLE)
        for name, part in ((stages.sketch_name(stage.number), sketch_N), (stages.table_name(stage.number), rows)):
            _write_at(self._scratch.local_path(name), part, first, total)
        mark = SketchMark(dtype=sketch_N.dtype.str, width=list(sketch_N.shape[1:]))
        stages.write_small(self._scratch, stages.sketch_mark(stage.number, chunk), mark)

    def _records(self, stage: int, chunk: int) -> list[Record]:
        """The records that stay of a chunk of a stage."""
        mark = stages.read_mark(self._scratch, stage, chunk)
        if mark.file is None:
            return []
        name = stages.records_name(stage, chunk)
        rows = read_rows(CuratedRow, self._scratch, name, mark.file, mark.records)
        return [from_row(row, self._scratch.where(name), self._roles) for row in rows]

    def _decided(self, stage: Stage, records: list[Record], first: int, left: Left) -> tuple[list[Record], StepTally]:
        """The records that stay by the decision of a global step."""
        assert stage.decided is not None
        step = self.steps[stage.decided]
        assert isinstance(step, GlobalStep)
        data = self._scratch.read_range(stages.codes_name(stage.number - 1), first, len(records))
        codes = np.frombuffer(data, np.uint8).tolist()
        return self._split(
            stage.decided, amount_of(records), records, [step.reasons[code - 1] if code else "" for code in codes], left
        )

    def _applied(self, index: int, records: list[Record], left: Left) -> tuple[list[Record], StepTally]:
        """The records that stay by a local step."""
        step = self.steps[index]
        assert isinstance(step, LocalStep)
        changed = self._recounted(records, step.changed(records))
        flagged = [each for old, new in zip(records, changed, strict=True) for each in flags_set(old, new)]
        return self._split(index, amount_of(records), changed, step.reasons(changed), left, flagged)

    def _recounted(self, before: Sequence[Record], after: Sequence[Record]) -> list[Record]:
        """The records, those counted again whose text has changed."""
        changed = [new for old, new in zip(before, after, strict=True) if new.content is not old.content]
        counted = iter(self._counter.counted(changed) if changed else [])
        return [new if new.content is old.content else next(counted) for old, new in zip(before, after, strict=True)]

    def _split(
        self,
        index: int,
        entered: Amount,
        records: Sequence[Record],
        reasons: Sequence[str],
        left: Left,
        flagged: Sequence[tuple[str, str]] = (),
    ) -> tuple[list[Record], StepTally]:
        key = step_key(index)
        stay = [record for record, reason in zip(records, reasons, strict=True) if not reason]
        removed = [(record, reason) for record, reason in zip(records, reasons, strict=True) if reason]
        left += [(record, key, reason) for record, reason in removed]
        return stay, tally_of(self._config.steps[index].step, key, entered, stay, removed, flagged)

    def _commit(self, stage: int, chunk: int, records: Sequence[Record], left: Left, tallies: list[StepTally]) -> None:
        """Write what stays, what left, and then the mark."""
        last = stage == len(self._stages)
        place, name = (
            (self._output, shard_file(stages.shard_of(chunk)))
            if last
            else (self._scratch, stages.records_name(stage, chunk))
        )
        file = self._write(place, name, [to_row(record) for record in records])
        removed = None
        if left:
            name = stages.removed_name(stage, chunk)
            entry = self._write(self._output, name, [to_row(*each) for each in left])
            assert entry is not None
            removed = RemovedFile(name=name, records=len(left), file=entry)
        by_layer: dict[str, list[Record]] = {}
        for record in records:
            by_layer.setdefault(record.layer, []).append(record)
        amount = amount_of(records)
        mark = ChunkMark(
            records=amount.records,
            tokens=amount.tokens,
            layers={layer: amount_of(by_layer[layer]) for layer in sorted(by_layer)},
            file=file,
            removed=removed,
            tallies=tallies,
        )
        stages.write_small(self._scratch, stages.mark_of(stage, chunk), mark)

    def _write(self, place: Storage, name: str, rows: list[CuratedRow]) -> ContentEntry | None:
        return write_rows(place, name, rows) if rows else None


def step_key(index: int) -> str:
    """The key of a step in the configuration."""
    return f"steps.{index}"


def _write_at(path: Path, rows: np.ndarray, first: int, total: int) -> None:
    """Write rows at their place in a file of ``total`` rows."""
    size = rows.dtype.itemsize * int(np.prod(rows.shape[1:], dtype=np.int64))
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.ftruncate(file, total * size)
        data, at = memoryview(rows.tobytes()), first * size
        while data:
            written = os.pwrite(file, data, at)
            data, at = data[written:], at + written
        os.fsync(file)
    finally:
        os.close(file)
