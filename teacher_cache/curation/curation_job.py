"""A curation from top to bottom: read the input in chunks, apply the steps stage by stage, write manifest and report.

Everything that takes long leaves marks in the scratch folder, so the same command continues after a crash at any point,
to the same bytes. The manifest is written last.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from schemas.curate_config import CurateConfig
from schemas.curated_manifest import Amount, CuratedManifest, RemovedFile
from schemas.difference import said_differences
from schemas.errors import ConflictError, UserError
from teacher_cache.corpus import corpus_fingerprint
from teacher_cache.corpus.fingerprint import with_file_names
from teacher_cache.curated.curated_place import CURATED, is_record_file, read_curated, shard_file
from teacher_cache.curation import stages
from teacher_cache.curation.changed_steps import first_changed, forget_from
from teacher_cache.curation.chunk_worker import ChunkWorker
from teacher_cache.curation.curation_report import write_report
from teacher_cache.curation.curation_step import GlobalStep, Table
from teacher_cache.curation.input_reader import InputReader, Read
from teacher_cache.curation.stages import ChunkMark, DecisionMark, PlanFile, ReadMark, SketchMark, Stage
from teacher_cache.curation.step_tally import StepTally, merged, total
from teacher_cache.curation.worker_pool import WorkerPool, worker_pool
from teacher_cache.plan import wait_for_workers
from teacher_cache.process import peak_memory_bytes
from teacher_cache.progress import Progress
from teacher_cache.shards.lease import WHOLE, whole_place
from teacher_cache.shards.storage import Storage
from teacher_cache.teacher import load_tokenizer
from teacher_cache.tokenizer import describe_tokenization

logger = logging.getLogger(__name__)
CURATING = "teacher-cache, curating"  # command name in the lease
CHUNK_CHARACTERS = 1 << 26
NOT_SETTINGS = {"layers", "counts", "shards", "removed", "sha256", "curated_version"}


@dataclass
class CurationSummary:
    """The result."""

    read: int = 0
    records: int = 0
    tokens: int = 0  # that count
    layers: dict[str, dict[str, int]] = field(default_factory=dict)
    removed: dict[str, dict[str, int]] = field(default_factory=dict)  # records by step and reason
    seconds: float = 0.0  # of this run
    peak_memory_bytes: int = 0  # of the main process in this run
    digest: str = ""


def curate(config: CurateConfig, workers: int = 1) -> CurationSummary:
    """Run the curation of ``config`` with so many processes, or continue it. Raises UserError."""
    started = time.perf_counter()
    storage, scratch = Storage(config.output.path), Storage(scratch_path(config))
    plan = planned(config)
    if not storage.exists(CURATED):
        with whole_place(storage, CURATING, wait_for_workers) as lease:
            if not storage.exists(CURATED):  # another process may have done it meanwhile
                _Curation(config, plan, lease.storage, scratch).run(workers)
    manifest = read_curated(storage)
    _check_same(manifest, plan.manifest, storage.where(CURATED))
    _remove_scratch(scratch, config)
    return _summary(manifest, time.perf_counter() - started)


def count_records(config: CurateConfig) -> dict[str, Any]:
    """Check the configuration and read the input, without writing anything: records by layer, and what left."""
    reader = planned(config).reader
    layers = dict.fromkeys(reader.layers, 0)
    left: dict[str, int] = {}
    for record, reason in reader:
        if reason:
            left[reason] = left.get(reason, 0) + 1
        else:
            layers[record.layer] += 1
    return {"records": sum(layers.values()), "layers": layers, "removed": dict(sorted(left.items()))}


def scratch_path(config: CurateConfig) -> str:
    """The scratch folder. Raises UserError if it cannot be one."""
    output = Storage(config.output.path)
    path = config.output.scratch
    if path is None and output.is_local:
        path = config.output.path.rstrip("/") + ".scratch"
    if path is None or not Storage(path).is_local:
        raise UserError(
            f"output.scratch: {path or 'not set'}: a local folder is needed for what is kept on the way, about twice "
            "the size of the input; set one"
        )
    return path


@dataclass(frozen=True)
class Planned:
    """What a configuration asks for."""

    manifest: CuratedManifest  # without counts and shards
    reader: InputReader
    worker: ChunkWorker
    tokenizer: str  # content of its ``tokenizer.json``


def planned(config: CurateConfig) -> Planned:
    """What ``config`` asks for. Raises UserError for settings that cannot work."""
    tokenizer = load_tokenizer(config.tokenizer.as_teacher(), "tokenizer.path")
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer.path: {config.tokenizer.path}: {type(tokenizer).__name__} is a slow tokenizer; use a folder "
            "with tokenizer.json"
        )
    described = describe_tokenization(tokenizer, config.input.as_corpus(), "input")
    reader = InputReader(config.input, described.fingerprint)
    worker = ChunkWorker(config, scratch_path(config), reader.layers)
    named = with_file_names(config.input.as_corpus())
    manifest = CuratedManifest(
        tokenizer=described,
        input=config.input.model_copy(update={"sources": named.sources}),
        input_fingerprint=corpus_fingerprint(config.input.as_corpus(), "input"),
        sources=reader.sources,
        steps=[_without_folders(step.model_dump(mode="json")) for step in config.steps],
        step_fingerprints=[step.fingerprint() for step in worker.steps],
        records_per_shard=config.output.records_per_shard,
    )
    return Planned(manifest, reader, worker, tokenizer.backend_tokenizer.to_str())


def _without_folders(settings: Any) -> Any:
    """Settings of a step with paths cut to their last part; what the files hold is in the step's fingerprint."""
    if isinstance(settings, dict):
        return {
            key: PurePath(value).name if key == "path" else _without_folders(value) for key, value in settings.items()
        }
    return [_without_folders(each) for each in settings] if isinstance(settings, list) else settings


class _Curation:
    """One run. The lease of the output's place is held."""

    def __init__(self, config: CurateConfig, plan: Planned, storage: Storage, scratch: Storage) -> None:
        self._config, self._wanted, self._reader, self._tokenizer = config, plan.manifest, plan.reader, plan.tokenizer
        self._storage, self._scratch = storage, scratch
        self._worker, self._steps = plan.worker, plan.worker.steps
        self._stages = stages.stages_of(self._steps)
        self._n_chunks = 0

    def run(self, workers: int) -> None:
        """Do what is missing."""
        with whole_place(self._scratch, CURATING, wait_for_workers):
            self._begin()
            arguments = (self._config, scratch_path(self._config), self._reader.layers)
            with worker_pool(workers, self._worker, *arguments) as pool:
                self._n_chunks = self._read(pool.here)
                marks = self._marks(0)
                for stage in self._stages:
                    marks = self._stage(stage, marks, pool)
            self._finish()

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
            _check_same(present.manifest, others, where)
            if present.output != plan.output:
                raise UserError(f"{where}: belongs to output.path {present.output}, not {plan.output}; choose another")
            if present.manifest != self._wanted:
                if not forget_from(self._scratch, changed, changed in present.compared, self._stages):
                    _check_same(present.manifest, self._wanted, where)
                logger.info("%s: continues with other settings from steps.%d on", where, changed)
                stages.write_small(self._scratch, stages.PLAN, plan)
            return
        for storage, key in ((self._scratch, "output.scratch"), (self._storage, "output.path")):
            if there := [name for name in storage.names() if name != stages.TOKENIZER]:
                raise UserError(f"{key}: {storage.where(there[0])}: files are already there; choose an empty place")
        self._scratch.write(stages.TOKENIZER, self._tokenizer.encode())
        stages.write_small(self._scratch, stages.PLAN, plan)

    def _read(self, worker: ChunkWorker) -> int:
        """Write the chunks of the input that are missing; returns how many there are."""
        names = {*self._scratch.names()}
        if stages.READ in names:
            return int(stages.read_small(ReadMark, self._scratch, stages.READ).chunks)
        chunk = 0
        for chunk, records in enumerate(in_chunks(self._reader, self._wanted.records_per_shard), 1):
            if stages.mark_of(0, chunk - 1) not in names:
                worker.read(chunk - 1, records)
        if not chunk:
            raise UserError("input.sources: no record in any of them; check their paths and patterns")
        stages.write_small(self._scratch, stages.READ, ReadMark(chunks=chunk))
        return chunk

    def _marks(self, stage: int) -> list[ChunkMark]:
        return [stages.read_mark(self._scratch, stage, chunk) for chunk in range(self._n_chunks)]

    def _stage(self, stage: Stage, before: list[ChunkMark], pool: WorkerPool) -> list[ChunkMark]:
        """Do what is missing of a stage, and of the decision that follows it; returns its marks."""
        names = {*self._scratch.names()}
        sizes = np.array([mark.records for mark in before])
        firsts = np.cumsum(sizes) - sizes
        chunks = [chunk for chunk in range(self._n_chunks) if stages.mark_of(stage.number, chunk) not in names]
        tasks = [(stage, chunk, int(firsts[chunk])) for chunk in chunks]
        self._follow(self._title(stage), pool.done("transform", tasks), [int(sizes[chunk]) for chunk in chunks])
        marks = self._marks(stage.number)
        if stage.following is not None and stages.decision_name(stage.number) not in names:
            self._decide(stage, stage.following, marks, pool)
        for name in self._outdated(stage.number - 1):  # not before: a step that refuses may be changed
            if name in names:
                self._scratch.delete(name)
        return marks

    def _title(self, stage: Stage) -> str:
        numbers = [*([] if stage.decided is None else [stage.decided]), *stage.local]
        return ", ".join(self._config.steps[number].step for number in numbers) or "counting tokens"

    def _outdated(self, stage: int) -> list[str]:
        """Files of a stage that nothing needs once the next one is done; its marks stay."""
        data = [stages.records_name(stage, chunk) for chunk in range(self._n_chunks)]
        sketches = [stages.sketch_name(stage), stages.table_name(stage), stages.codes_name(stage)]
        return [*data, *sketches, *(stages.sketch_mark(stage, chunk) for chunk in range(self._n_chunks))]

    def _decide(self, stage: Stage, index: int, marks: Sequence[ChunkMark], pool: WorkerPool) -> None:
        """Sketch all records and let a global step decide."""
        step = self._steps[index]
        assert isinstance(step, GlobalStep)
        names = {*self._scratch.names()}
        sizes = np.array([mark.records for mark in marks])
        firsts, n_records = np.cumsum(sizes) - sizes, int(sizes.sum())
        full = [chunk for chunk in range(self._n_chunks) if sizes[chunk]]
        if not full:
            raise UserError(f"steps.{index} ({self._config.steps[index].step}): no record is left before it")
        chunks = [chunk for chunk in full if stages.sketch_mark(stage.number, chunk) not in names]
        tasks = [(stage, chunk, int(firsts[chunk]), n_records) for chunk in chunks]
        doing: Callable[[str, Iterable[Any]], Iterator[None]] = pool.done_by_one if step.one_process else pool.done
        name = self._config.steps[index].step
        self._follow(f"{name}, sketches", doing("sketch", tasks), [int(sizes[chunk]) for chunk in chunks])
        logger.info("%s: deciding over %d records", name, n_records)
        decision = step.decide(self._sketches(stage, full, n_records), self._table(stage))
        codes = np.asarray(decision.code_N, np.uint8)
        if len(codes) != n_records or codes.max() > len(step.reasons):
            raise TypeError(f"{type(step).__name__}.decide: {len(codes)} codes up to {codes.max()} for {n_records}")
        self._scratch.write(stages.codes_name(stage.number), codes.tobytes())
        notes = DecisionMark(notes=dict(decision.notes))
        stages.write_small(self._scratch, stages.decision_name(stage.number), notes)

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

    def _finish(self) -> None:
        """Write report and manifest."""
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
        self._remove_unlisted({shard_file(shard.name) for shard in shards} | {file.name for file in removed})
        write_report(self._storage, manifest, tallies)
        self._storage.write(CURATED, manifest.to_json().encode())

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

    def _remove_unlisted(self, listed: set[str]) -> None:
        """Remove files of passes that were made again with other settings."""
        for name in self._storage.names():
            if is_record_file(name) and name not in listed:
                self._storage.delete(name)


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


def _check_same(present: CuratedManifest, wanted: CuratedManifest, where: str) -> None:
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


def _remove_scratch(scratch: Storage, config: CurateConfig) -> None:
    """Remove what a complete curation has left in its scratch folder, the plan last."""
    names = scratch.names()
    if stages.PLAN not in names:
        return
    plan = stages.read_small(PlanFile, scratch, stages.PLAN)
    if plan.output != config.output.path:
        return
    with whole_place(scratch, CURATING, wait_for_workers) as lease:
        for name in [*(name for name in scratch.names() if stages.is_ours(name)), stages.PLAN]:
            lease.storage.delete(name)
    scratch.delete(WHOLE)
    with suppress(OSError):
        Path(scratch.local_path("x")).parent.rmdir()


def _summary(manifest: CuratedManifest, seconds: float) -> CurationSummary:
    kept = total(manifest.layers.values())
    read = manifest.counts[0].entered if manifest.counts else Amount()
    return CurationSummary(
        read=read.records,
        records=kept.records,
        tokens=kept.tokens,
        layers={layer: amount.model_dump() for layer, amount in manifest.layers.items()},
        removed={
            f"{counts.key} {counts.step}": {reason: amount.records for reason, amount in counts.removed.items()}
            for counts in manifest.counts
            if counts.removed
        },
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        digest=manifest.sha256,
    )
