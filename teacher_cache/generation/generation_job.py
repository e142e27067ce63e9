"""A generation from top to bottom: plan → write replies → judge them → commit, unit by unit.

A unit's replies are written as a whole and become one file; its commit mark is written last. After a crash at any
point, the next run finds only complete shards, and does the others from their beginning: seeds are functions of prompt,
sample and configuration, and units share no forward pass, so the replies are the same.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from schemas.errors import ConflictError
from schemas.generate_config import GenerateConfig, longest_reply, reasoning_of
from schemas.generated_manifest import GeneratedManifest, GeneratedShard, PromptUnit, sampling_digest
from teacher_cache.claims import GENERATING, Claims, ShareClaims
from teacher_cache.corpus.token_spans import ByteTokenizer, special_ids
from teacher_cache.generated.generated_place import (
    GENERATED,
    commit_shard,
    committed_units,
    read_generated,
    read_unit_prompts,
    replies_name,
    with_committed,
    write_generated,
)
from teacher_cache.generated.reply_files import Prompt, Reply, write_rows
from teacher_cache.generation.chain_stages import ChainStages, Judged, Turn, uncounted
from teacher_cache.generation.generation_plan import empty_generation, in_units, load_or_make_generation
from teacher_cache.generation.prompt_reader import PromptReader
from teacher_cache.generation.reject import Rejecter
from teacher_cache.generation.sampler import Asked, Sampler, seed_of
from teacher_cache.generation.samplers import open_sampler
from teacher_cache.job import Worker
from teacher_cache.plan import wait_for_workers
from teacher_cache.process import peak_memory_bytes
from teacher_cache.progress import Progress
from teacher_cache.queue_claims import QueueClaims
from teacher_cache.shards.lease import part_lease, remove_dead_parts
from teacher_cache.shards.storage import Storage, is_temporary
from teacher_cache.stop_request import StopRequest
from teacher_cache.teacher import load_tokenizer

logger = logging.getLogger(__name__)


@dataclass
class GenerationSummary:
    """Results of this run, and the state of the place (all workers)."""

    units_written: int = 0
    units_skipped: int = 0  # committed before
    replies: int = 0  # in this run, like the following fields
    new_tokens: int = 0
    seconds: float = 0.0  # without loading the engine
    engine_load_seconds: float = 0.0
    new_tokens_per_second: float = 0.0
    peak_memory_bytes: int = 0
    prompts: int = 0  # in the place, like the following fields
    all_replies: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    all_new_tokens: int = 0
    complete: bool = False
    digest: str = ""
    stopped_by: str | None = None  # name of the signal that ended the run before its last unit


def generate(config: GenerateConfig, worker: Worker | None = None) -> GenerationSummary:
    """Run the generation of ``config``; units already committed are skipped.

    On SIGINT, SIGTERM or SIGHUP the current unit is finished; a second signal ends the process at once. Raises
    UserError.
    """
    worker = worker or Worker()
    storage = Storage(config.output.path)
    tokenizer = load_tokenizer(config.generator, "generator.path")
    plan = load_or_make_generation(config, storage, tokenizer)
    done = committed_units(storage, plan)
    with_committed(storage, plan)  # raises if the files of a committed unit are missing
    mine = plan.units[worker.rank :: worker.world]
    pending = [unit for unit in mine if unit.name not in done]
    summary, stop = GenerationSummary(units_skipped=len(mine) - len(pending)), StopRequest()
    with _claims(worker, storage, pending) as claims:
        claim = claims.next_or_wait(stop)
        if claim is not None:
            started = time.perf_counter()
            with open_sampler(config) as sampler, stop.listening("the current unit", kill=True):
                summary.engine_load_seconds = time.perf_counter() - started
                logger.info("generator loaded in %.1f s", summary.engine_load_seconds)
                started = time.perf_counter()
                writer = _Writer(config, plan, tokenizer, sampler, worker.owner)
                total = sum(unit.replies for unit in pending)
                with Progress(total, "generating", "replies", "replies/s") as progress:
                    while claim is not None and not stop:
                        shard = writer.write(claim.unit, claim.lease.storage, progress)
                        progress.committed(None)
                        following = None if stop else claims.next_or_wait(stop)
                        claims.done(claim.unit)
                        summary.units_written += 1
                        summary.replies += shard.replies
                        summary.new_tokens += shard.new_tokens
                        claim = following
                summary.seconds = time.perf_counter() - started
        manifest = _write_manifest(storage, plan)
        if not stop:
            claims.check_all_done(manifest.shards)
    summary.stopped_by = stop.signal_name
    return _completed(summary, manifest)


def _claims(worker: Worker, storage: Storage, pending: list[PromptUnit]) -> Claims[PromptUnit]:
    if worker.queue:
        return QueueClaims(storage, pending, lambda unit: unit.replies, GENERATING)
    return ShareClaims(storage, pending, GENERATING)


def count_prompts(config: GenerateConfig) -> dict[str, int]:
    """Check the configuration and read the prompts, without writing anything: what became of the records.

    ``tokens_at_most``: of all sequences, prompt and reply, if every reply is as long as it may be.
    """
    tokenizer = load_tokenizer(config.generator, "generator.path")
    plan = empty_generation(config, tokenizer)
    reader = PromptReader(config.prompts, tokenizer)
    units = replies = read = new = 0
    for unit in in_units(reader, plan):
        units += 1
        for prompt in unit:
            sampling = plan.sampling[prompt.layer]
            replies += sampling.samples
            read += sampling.samples * len(prompt.prompt_ids)
            new += sampling.samples * longest_reply(sampling, reasoning_of(plan.reasoning, prompt.layer))
    at_most = {"new_tokens_at_most": new, "tokens_at_most": read + new}
    return {"units": units, "replies": replies, **at_most, **reader.counts.model_dump()}


class _Writer:
    """Writes the replies of one unit after the other."""

    def __init__(
        self, config: GenerateConfig, plan: GeneratedManifest, tokenizer: Any, sampler: Sampler, owner: str
    ) -> None:
        special = {*special_ids(tokenizer), *tokenizer.all_special_ids}
        self._plan, self._sampler, self._owner = plan, sampler, owner
        self._rejecter = Rejecter(ByteTokenizer(tokenizer), special, plan.reject)
        self._stages: ChainStages | None = None
        if plan.reasoning is not None:
            self._stages = ChainStages(config, plan.reasoning, tokenizer, sampler, self._rejecter)
        self._digests = {layer: sampling_digest(sampling) for layer, sampling in plan.sampling.items()}

    def write(self, unit: PromptUnit, storage: Storage, progress: Progress) -> GeneratedShard:
        """Write and commit the replies of ``unit``; ``storage`` is fenced by its lease."""
        prompts = read_unit_prompts(storage, unit)
        turns = [(p, sample) for p in prompts for sample in range(self._plan.sampling[p.layer].samples)]
        asked = [self._asked(prompt, sample) for prompt, sample in turns]
        replies = [
            Reply(
                key=prompt.key,
                sample=sample,
                reply=said.text,
                reply_ids=said.ids,
                finish=said.finish,
                reason=said.reason,
                seed=one.seed,
                sampling=self._digests[prompt.layer],
                template=self._plan.tokenizer.chat_template or "",
                generator=self._plan.generator.fingerprint,
                made=said.made,
            )
            for (prompt, sample), one, said in zip(turns, asked, self._judged(turns, asked, progress), strict=True)
        ]
        shard = self._shard(unit, asked, replies, storage)
        commit_shard(storage, shard, self._owner)
        return shard

    def _judged(self, turns: Sequence[tuple[Prompt, int]], asked: Sequence[Asked], progress: Progress) -> list[Judged]:
        written = self._sampler.write(asked, progress.scored if self._stages is None else uncounted)
        judged = [Judged(ids, finish, *self._rejecter.judge(ids, finish)) for ids, finish in written]
        if self._stages is not None:
            layers = self._stages.layers
            drafts = {n: Turn(*turns[n], asked[n], judged[n]) for n in range(len(turns)) if turns[n][0].layer in layers}
            for n, said in zip(drafts, self._stages.completed([*drafts.values()]), strict=True):
                judged[n] = said
            progress.scored(len(turns))
        return judged

    def _asked(self, prompt: Prompt, sample: int) -> Asked:
        plan = self._plan
        stops = tuple(plan.stop_tokens[prompt.layer])
        return Asked(prompt.prompt_ids, plan.sampling[prompt.layer], stops, seed_of(prompt.key, sample, plan.seed))

    def _shard(
        self, unit: PromptUnit, asked: Sequence[Asked], replies: Sequence[Reply], storage: Storage
    ) -> GeneratedShard:
        reasons = Counter(reply.reason for reply in replies)
        return GeneratedShard(
            name=unit.name,
            replies=len(replies),
            accepted=reasons.pop("", 0),
            prompt_tokens=sum(len(one.prompt_ids) for one in asked),
            new_tokens=sum(len(reply.reply_ids) for reply in replies),
            rejected=dict(sorted(reasons.items())),
            file=write_rows(storage, replies_name(unit.name), replies, self._owner),
        )


def _write_manifest(storage: Storage, plan: GeneratedManifest) -> GeneratedManifest:
    """Write the manifest of all shards committed so far, one worker at a time.

    Raises CorruptCacheError if the replies of a committed shard are missing, ConflictError if the plan is no longer
    ``plan``.
    """
    with part_lease(storage, "manifest", GENERATING, wait_for_workers) as lease:
        present = read_generated(storage)
        if present.units != plan.units:
            raise ConflictError(f"{storage.where(GENERATED)}: planned again during this run; run again")
        manifest = with_committed(storage, present.model_copy(update={"shards": []}))
        manifest = write_generated(lease.storage, manifest)
        if manifest.complete:
            remove_dead_parts(storage)
            for name in storage.names():
                if is_temporary(name):  # of killed workers: all units are committed
                    lease.storage.delete(name)
    return manifest


def _completed(summary: GenerationSummary, manifest: GeneratedManifest) -> GenerationSummary:
    rejected: Counter[str] = Counter()
    for shard in manifest.shards:
        rejected.update(shard.rejected)
    summary.new_tokens_per_second = summary.new_tokens / summary.seconds if summary.seconds else 0.0
    summary.peak_memory_bytes = peak_memory_bytes()
    summary.prompts = manifest.counts.prompts
    summary.all_replies = sum(shard.replies for shard in manifest.shards)
    summary.accepted = sum(shard.accepted for shard in manifest.shards)
    summary.rejected = dict(sorted(rejected.items()))
    summary.all_new_tokens = sum(shard.new_tokens for shard in manifest.shards)
    summary.complete = manifest.complete
    summary.digest = manifest.sha256
    return summary


def generation_dict(summary: GenerationSummary) -> dict[str, Any]:
    """The summary as plain data for JSON."""
    return asdict(summary)
