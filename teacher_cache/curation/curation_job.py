"""A curation from top to bottom: read the input in chunks, apply the steps stage by stage, write manifest and report.

Everything that takes long leaves marks in the scratch folder, so the same command continues after a crash at any point,
to the same bytes. The manifest is written last.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from schemas.curate_config import CurateConfig
from schemas.curated_manifest import Amount, CuratedManifest
from schemas.errors import UserError
from teacher_cache.corpus import corpus_fingerprint
from teacher_cache.corpus.fingerprint import with_file_names
from teacher_cache.curated.curated_place import CURATED, read_curated
from teacher_cache.curation import stages
from teacher_cache.curation.chunk_queue import CURATING, curate_with_others, waits_for_one
from teacher_cache.curation.chunk_worker import ChunkWorker
from teacher_cache.curation.curation_run import CurationRun, Planned, check_same
from teacher_cache.curation.input_reader import InputReader
from teacher_cache.curation.stages import PlanFile, scratch_path
from teacher_cache.curation.step_tally import total
from teacher_cache.curation.worker_pool import worker_pool
from teacher_cache.process import peak_memory_bytes
from teacher_cache.shards.lease import WHOLE, Held, whole_place
from teacher_cache.shards.storage import Storage
from teacher_cache.teacher import load_tokenizer
from teacher_cache.tokenizer import describe_tokenization


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


def curate(config: CurateConfig, workers: int = 1, queue: bool = False) -> CurationSummary:
    """Run the curation of ``config`` with so many processes, or continue it. Raises UserError.

    ``queue``: share the chunks with other processes that have this option.
    """
    started = time.perf_counter()
    storage, scratch = Storage(config.output.path), Storage(scratch_path(config))
    plan = planned(config)
    if not storage.exists(CURATED):
        if queue:
            curate_with_others(config, plan, storage, scratch)
        else:
            _curate_alone(config, plan, storage, scratch, workers)
    manifest = read_curated(storage)
    check_same(manifest, plan.manifest, storage.where(CURATED))
    with suppress(Held):  # by another process of the queue, which removes it
        _remove_scratch(scratch, config)
    return _summary(manifest, time.perf_counter() - started)


def _curate_alone(config: CurateConfig, plan: Planned, storage: Storage, scratch: Storage, workers: int) -> None:
    with whole_place(storage, CURATING, waits_for_one) as lease:
        if storage.exists(CURATED):  # another process may have done it meanwhile
            return
        with whole_place(scratch, CURATING, waits_for_one):
            run = CurationRun(config, plan, lease.storage, scratch)
            run.read()
            arguments = (config, scratch_path(config), plan.reader.layers)
            with worker_pool(workers, plan.worker, *arguments) as pool:
                run.work(pool)


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


def _remove_scratch(scratch: Storage, config: CurateConfig) -> None:
    """Remove what a complete curation has left in its scratch folder, the plan last."""
    if not scratch.exists(stages.PLAN):
        return
    with whole_place(scratch, CURATING, waits_for_one) as lease:
        names = scratch.names()
        if stages.PLAN not in names:  # another process has removed it meanwhile
            return
        if stages.read_small(PlanFile, scratch, stages.PLAN).output != config.output.path:
            return
        for name in [*(name for name in names if stages.is_ours(name)), stages.PLAN]:
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
