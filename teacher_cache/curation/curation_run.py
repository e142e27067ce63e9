"""The work of a curation, stage by stage, with whatever does its chunks: this process, several, or a queue.

What is done leaves marks in the scratch folder: whoever comes next continues from them, to the same bytes.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.curate_config import CurateConfig
from schemas.curated_manifest import CuratedManifest, RemovedFile
from schemas.difference import said_differences
from schemas.errors import ConflictError, MissingFileError, UserError
from teacher_cache.curated.curated_place import CURATED, is_record_file, shard_file
from teacher_cache.curation import stages
from teacher_cache.curation.changed_steps import first_changed, forget_from
from teacher_cache.curation.chunk_worker import ChunkWorker
from teacher_cache.curation.curation_report import write_report
from teacher_cache.curation.curation_step import GlobalStep, Table
from teacher_cache.curation.hands import Hands
from teacher_cache.curation.input_reader import InputReader, Read
from teacher_cache.curation.stages import ChunkMark, DecisionMark, PlanFile, ReadMark, SketchMark, Stage
from teacher_cache.curation.step_tally import StepTally, merged, total
from teacher_cache.progress import Progress
from teacher_cache.shards.storage import Storage, is_temporary

CHUNK_CHARACTERS = 1 << 26
NOT_SETTINGS = {"layers", "counts", "shards", "removed", "sha256", "curated_version"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """What a configuration asks for."""

    manifest: CuratedManifest  # without counts and shards
    reader: InputReader
    worker: ChunkWorker
    tokenizer: str  # content of its ``tokenizer.json``


class CurationRun:
    """One run: what is missing is done by this process, or by this and others. The places are held by the caller."""

    def __init__(self, config: CurateConfig, plan: Planned, storage: Storage, scratch: Storage) -> None:
        self._config, self._wanted, self._reader, self._tokenizer = config, plan.manifest, plan.reader, plan.tokenizer
        self._storage, self._scratch = storage, scratch
        self._worker, self._steps = plan.worker, plan.worker.steps
        self._stages = stages.stages_of(self._steps)
        self._n_chunks = 0

    def is_read(self) -> bool:
        """Whether the whole input was read, for this curation with the same settings."""
        try:
            stages.read_small(ReadMark, self._scratch, stages.READ)
            present = stages.read_small(PlanFile, self._scratch, stages.PLAN)
        except MissingFileError:  # not begun, or removed by now
            return False
        return bool(present.manifest == self._wanted and present.output == self._config.output.path)

    def read(self) -> None:
        """Check that the places are free, or hold the beginning of this curation, and write the chunks of the input."""
        self._begin()
        names = {*self._scratch.names()}
        if stages.READ in names:
            return
        chunk = 0
        for chunk, records in enumerate(in_chunks(self._reader, self._wanted.records_per_shard), 1):
            if stages.mark_of(0, chunk - 1) not in names:
                self._worker.read(chunk - 1, records)
        if not chunk:
            raise UserError("input.sources: no record in any of them; check their paths and patterns")
        stages.write_small(self._scratch, stages.READ, ReadMark(chunks=chunk))

    def work(self, hands: Hands) -> None:
        """Do the stages one after the other, then write report and manifest."""
        self._n_chunks = int(stages.read_small(ReadMark, self._scratch, stages.READ).chunks)
        marks = self._marks(0)
        for stage in self._stages:
            marks = self._stage(stage, marks, hands)
        with hands.alone() as fenced:
            if not self._storage.exists(CURATED):  # another process may have done it meanwhile
                self._finish(fenced(self._storage))

    def _begin(self) -> None:
        """Check that the places are free, or hold the beginning of this curation; write the plan."""
        compared = [number for number, step in enumerate(self._steps) if isinstance(step, GlobalStep)]
        plan = PlanFile(output=self._config.output.path, compared=compared, manifest=self._wanted)
        names = self._scratch.names()
        if stages.PLAN in names:
            present = stages.read_small(PlanFile, self._scratch, stages.PLAN)
            where = self._scratch.where(stages.PLAN)
            changed = first_changed(present.manifest, self._wanted)
            others = self._wanted.model_copy(
                update={"steps": present.manifest.steps, "step_fingerprints": present.manifest.step_fingerprints}
            )
            check_same(present.manifest, others, where)
            if present.output != plan.output:
                raise UserError(f"{where}: belongs to output.path {present.output}, not {plan.output}; choose another")
            if present.manifest != self._wanted:
                if not forget_from(self._scratch, changed, changed in present.compared, self._stages):
                    check_same(present.manifest, self._wanted, where)
                logger.info("%s: continues with other settings from steps.%d on", where, changed)
                stages.write_small(self._scratch, stages.PLAN, plan)
            return
        for storage, key in ((self._scratch, "output.scratch"), (self._storage, "output.path")):
            if there := [name for name in storage.names() if name != stages.TOKENIZER]:
                raise UserError(f"{key}: {storage.where(there[0])}: files are already there; choose an empty place")
        self._scratch.write(stages.TOKENIZER, self._tokenizer.encode())
        stages.write_small(self._scratch, stages.PLAN, plan)

    def _marks(self, stage: int) -> list[ChunkMark]:
        return [stages.read_mark(self._scratch, stage, chunk) for chunk in range(self._n_chunks)]

    def _stage(self, stage: Stage, before: list[ChunkMark], hands: Hands) -> list[ChunkMark]:
        """Do what is missing of a stage, and of the decision that follows it; returns its marks."""
        names = {*self._scratch.names()}
        firsts, _ = _places(before)
        chunks = [chunk for chunk in range(self._n_chunks) if stages.mark_of(stage.number, chunk) not in names]
        tasks = [(stage, chunk, int(firsts[chunk])) for chunk in chunks]
        self._follow(self._title(stage), hands.done("transform", tasks), [before[chunk].records for chunk in chunks])
        marks = self._marks(stage.number)
        if stage.following is not None and stages.decision_name(stage.number) not in names:
            self._sketch(stage, stage.following, marks, hands)
            with hands.alone() as fenced:
                if not self._scratch.exists(stages.decision_name(stage.number)):
                    self._decide(stage, stage.following, marks, fenced(self._scratch))
        for name in self._outdated(stage.number - 1):  # not before: a step that refuses may be changed
            if name in names:
                self._scratch.delete(name)
        return marks

    def _title(self, stage: Stage) -> str:
        numbers = [*([] if stage.decided is None else [stage.decided]), *stage.local]
        return ", ".join(self._config.steps[number].step for number in numbers) or "counting tokens"

    def _outdated(self, stage: int) -> list[str]:
        """Files of a stage that nothing needs once the next one is done; marks stay: slower processes look at them."""
        data = [stages.records_name(stage, chunk) for chunk in range(self._n_chunks)]
        return [*data, stages.sketch_name(stage), stages.table_name(stage), stages.codes_name(stage)]

    def _sketch(self, stage: Stage, index: int, marks: Sequence[ChunkMark], hands: Hands) -> None:
        """Sketch all records for a global step."""
        step = self._global(index)
        names = {*self._scratch.names()}
        firsts, n_records = _places(marks)
        if not n_records:
            raise UserError(f"steps.{index} ({self._config.steps[index].step}): no record is left before it")
        chunks = [chunk for chunk in _full(marks) if stages.sketch_mark(stage.number, chunk) not in names]
        tasks = [(stage, chunk, int(firsts[chunk]), n_records) for chunk in chunks]
        doing = hands.done_by_one if step.one_process else hands.done
        title = f"{self._config.steps[index].step}, sketches"
        self._follow(title, doing("sketch", tasks), [marks[chunk].records for chunk in chunks])

    def _decide(self, stage: Stage, index: int, marks: Sequence[ChunkMark], scratch: Storage) -> None:
        """Let a global step decide over the sketches of all records."""
        step, (_, n_records) = self._global(index), _places(marks)
        logger.info("%s: deciding over %d records", self._config.steps[index].step, n_records)
        decision = step.decide(self._sketches(stage, _full(marks), n_records), self._table(stage))
        codes = np.asarray(decision.code_N, np.uint8)
        if len(codes) != n_records or codes.max() > len(step.reasons):
            raise TypeError(f"{type(step).__name__}.decide: {len(codes)} codes up to {codes.max()} for {n_records}")
        scratch.write(stages.codes_name(stage.number), codes.tobytes())
        notes = DecisionMark(notes=dict(decision.notes))
        stages.write_small(scratch, stages.decision_name(stage.number), notes)

    def _global(self, index: int) -> GlobalStep:
        step = self._steps[index]
        assert isinstance(step, GlobalStep)
        return step

    def _sketches(self, stage: Stage, chunks: Sequence[int], n_records: int) -> np.ndarray:
        """The sketches of all records, memory-mapped."""
        marks = [
            stages.read_small(SketchMark, self._scratch, stages.sketch_mark(stage.number, chunk)) for chunk in chunks
        ]
        if any(mark != marks[0] for mark in marks):
            raise TypeError(f"stage {stage.number}: sketches of several types: {marks[0]}, …")
        path = self._scratch.local_path(stages.sketch_name(stage.number))
        return np.memmap(path, np.dtype(marks[0].dtype), "r", shape=(n_records, *marks[0].width))

    def _table(self, stage: Stage) -> Table:
        rows = np.memmap(self._scratch.local_path(stages.table_name(stage.number)), stages.TABLE, "r")
        return Table(rows["number"], rows["source"], rows["layer"], rows["n_tokens"], self._reader.layers)

    def _follow(self, title: str, doing: Iterator[None], sizes: Sequence[int]) -> None:
        """Wait for the chunks of these sizes, showing progress."""
        with Progress(sum(sizes), f"curating: {title}", "records", "records/s") as progress:
            for number, _ in enumerate(doing):
                progress.scored(sizes[number])

    def _finish(self, storage: Storage) -> None:
        """Write report and manifest to ``storage``, which is fenced."""
        last = len(self._stages)
        marks = {number: self._marks(number) for number in range(last + 1)}
        tallies = self._tallies(marks)
        shards = [shard for chunk, mark in enumerate(marks[last]) if (shard := mark.shard(chunk))]
        removed = [mark.removed for number in range(last + 1) for mark in marks[number] if mark.removed]
        layers = sorted({layer for mark in marks[last] for layer in mark.layers})
        manifest = self._wanted.model_copy(
            update={
                "layers": {
                    layer: total(mark.layers[layer] for mark in marks[last] if layer in mark.layers) for layer in layers
                },
                "counts": [tally.counts for tally in tallies],
                "shards": shards,
                "removed": removed,
            }
        )
        self._check_there({shard_file(shard.name): shard.file.bytes for shard in shards}, removed)
        if not shards:
            raise UserError(f"{self._config.output.path}: no record is left: {_losses(tallies)}; change the steps")
        listed = {shard_file(shard.name) for shard in shards} | {file.name for file in removed}
        for name in storage.names():  # of passes that were made again with other settings, or of killed processes
            if (is_record_file(name) and name not in listed) or is_temporary(name):
                storage.delete(name)
        write_report(storage, manifest, tallies)
        storage.write(CURATED, manifest.to_json().encode())

    def _tallies(self, marks: dict[int, list[ChunkMark]]) -> list[StepTally]:
        """What each step did, in order, with the notes of global ones."""
        found = []
        for number in marks:
            for each in zip(*(mark.tallies for mark in marks[number]), strict=True):
                found.append(merged(each))
        for stage in self._stages:
            if stage.following is not None:
                mark = stages.read_small(DecisionMark, self._scratch, stages.decision_name(stage.number))
                at = next(i for i, tally in enumerate(found) if tally.counts.key == f"steps.{stage.following}")
                counts = found[at].counts.model_copy(update={"notes": mark.notes})
                found[at] = found[at].model_copy(update={"counts": counts})
        return found

    def _check_there(self, shards: dict[str, int], removed: Sequence[RemovedFile]) -> None:
        """Raise ConflictError unless all files of the result are at its place."""
        sizes = self._storage.sizes()
        wanted = shards | {file.name: file.file.bytes for file in removed}
        for name, size in wanted.items():
            if sizes.get(name) != size:
                raise ConflictError(
                    f"{self._storage.where(name)}: {sizes.get(name, 'no')} bytes, {size} were written: another program "
                    f"has changed it; remove {self._scratch.url} and the files of output.path, and run again"
                )


def in_chunks(records: Iterable[Read], most: int) -> Iterator[list[Read]]:
    """Consecutive records, at most so many, with texts of a bounded size."""
    chunk: list[Read] = []
    characters = 0
    for read in records:
        size = len(read[0].prompt) + len(read[0].reply)
        if chunk and (len(chunk) == most or characters + size > CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(read)
        characters += size
    if chunk:
        yield chunk


def _places(marks: Sequence[ChunkMark]) -> tuple[np.ndarray, int]:
    """Place of each chunk's first record among all, int64 [chunks], and their number."""
    sizes = np.array([mark.records for mark in marks])
    return np.cumsum(sizes) - sizes, int(sizes.sum())


def _full(marks: Sequence[ChunkMark]) -> list[int]:
    """Chunks that have a record."""
    return [chunk for chunk, mark in enumerate(marks) if mark.records]


def check_same(present: CuratedManifest, wanted: CuratedManifest, where: str) -> None:
    """Raise UserError naming each setting in which ``wanted`` differs from what is there."""
    before, now = (each.model_dump(mode="json", exclude=NOT_SETTINGS) for each in (present, wanted))
    if differing := said_differences(before, now):
        raise UserError(
            f"{where}: this corpus was curated with other settings: {differing}; choose another "
            "output.path, use the same settings, or remove what is there to begin again"
        )


def _losses(tallies: Sequence[StepTally]) -> str:
    return ", ".join(
        f"{tally.counts.step} removed {lost}"
        for tally in tallies
        if (lost := sum(amount.records for amount in tally.counts.removed.values()))
    )
