"""Rounds from top to bottom: the student generates → the teacher scores → the student trains, n times.

Each part is a command of its own, which is given a configuration file in the round's folder and ends before the next
one begins: no two models are in memory together. What is done is told by what the parts leave: complete replies, a
complete cache, a finished training. A round is complete when ``round.json`` is there; only then is anything of it
thrown away.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pydantic import BaseModel

from schemas.cache_config import TeacherConfig
from schemas.errors import UserError
from schemas.generated_manifest import GeneratedManifest
from schemas.manifest import Manifest
from schemas.rounds_config import RoundsConfig
from teacher_cache.generated.generated_place import GENERATED, read_generated
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import MANIFEST, Storage
from teacher_cache.teacher import load_tokenizer
from teacher_cache.tokenizer import describe_tokenizer
from trainer.rounds.part_process import PartProcesses
from trainer.rounds.round_cost import cost_of_round, say
from trainer.rounds.round_parts import Round, Settings, generating, scoring, settled, starting, training
from trainer.rounds.rounds_place import (
    RoundRecord,
    begin_place,
    complete,
    complete_rounds,
    read_place,
    throw_away,
)
from trainer.run.output_files import replace_text
from trainer.run.owner import only_run_in

logger = logging.getLogger(__name__)
COMMAND = "train-student rounds"
GENERATE, SCORE, TRAIN = ("teacher-cache", "generate"), ("teacher-cache", "run"), ("train-student", "run")


def plan_rounds(config: RoundsConfig) -> dict[str, Any]:
    """Check the configuration and return what a round costs, without writing anything. Raises UserError."""
    settings, parts = settled(config), PartProcesses()
    read_place(settings)
    check_tokenizers(settings)
    return _cost(settings, parts) or {}


def run_rounds(config: RoundsConfig) -> dict[str, Any]:
    """Run all rounds that are not complete; returns the summary.

    On SIGINT, SIGTERM or SIGHUP the part under way is asked to end, and no other begins: ``stopped_by`` is then the
    signal's number. Raises UserError; PartFailed if a part ends with an error.
    """
    settings, parts = settled(config), PartProcesses()
    present = read_place(settings)
    check_tokenizers(settings)
    settings.output.mkdir(parents=True, exist_ok=True)
    with only_run_in(config.output, COMMAND) as fence, parts.listening():
        _first_student(settings, parts)
        cost = _cost(settings, parts) if present is None else present.cost
        if cost is not None:
            logger.info("%s", say(cost))
            if present is None:
                begin_place(settings, cost)
            _remaining(settings, parts, fence)
    done = complete_rounds(settings)[: config.rounds]
    return {
        "rounds": [record.model_dump() for record in done],
        "complete": len(done) == config.rounds,
        "student": str(settings.student_before(len(done) + 1)),
        "stopped_by": parts.signal_number,
    }


def check_tokenizers(settings: Settings) -> None:
    """Raise UserError unless student and teacher have the same tokenizer: the student's ids are what is scored."""
    given = settings.training.student
    student, key = (given.checkpoint, "checkpoint") if given.checkpoint is not None else (given.teacher, "teacher")
    teacher = settings.config.score.teacher
    own = TeacherConfig(path=str(student), trust_remote_code=given.trust_remote_code)
    ours = describe_tokenizer(load_tokenizer(own, f"train.student.{key}")).fingerprint
    theirs = describe_tokenizer(load_tokenizer(teacher, "score.teacher.path")).fingerprint
    if ours != theirs:
        raise UserError(
            f"train.student.{key}: {student}: its tokenizer (vocabulary {ours[:12]}…) is not that of "
            f"score.teacher.path {teacher.path} ({theirs[:12]}…), which reads the student's token ids; rounds need one "
            "tokenizer"
        )


def _first_student(settings: Settings, parts: PartProcesses) -> None:
    """Write the student of the first round, if it is cut from its teacher."""
    if settings.training.student.checkpoint is None and not settings.student_before(1).exists():
        _run_part(settings.output / "start.yaml", starting(settings), ("train-student", "init"), parts, "the start")


def _cost(settings: Settings, parts: PartProcesses) -> dict[str, Any] | None:
    """What a round costs; None if it was stopped. The prompts are read by a process of its own."""
    given = settings.training.student
    student = settings.student_before(1)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "generate.yaml"
        path.write_text(_text(generating(settings, 1, student if student.exists() else Path(str(given.teacher)))))
        found = parts.run((*GENERATE, str(path), "--dry-run", "--json"), "the prompts", output=True)
    if found is None:
        return None
    return cost_of_round(settings, json.loads(found[found.index("{") :]), student)


def _remaining(settings: Settings, parts: PartProcesses, fence: Any) -> None:
    """Run every round that is not complete, until a part is stopped."""
    done = len(complete_rounds(settings))
    throw_away(settings, done)
    for number in range(done + 1, settings.config.rounds + 1):
        record = _run_round(settings, number, parts)
        if record is None:
            return
        fence()
        complete(settings.round(number), record)
        throw_away(settings, number)
        logger.info("round %d of %d is complete: %s", number, settings.config.rounds, settings.round(number).final)


def _run_round(settings: Settings, number: int, parts: PartProcesses) -> RoundRecord | None:
    """Run the parts of a round that are not complete; None if one was stopped."""
    place = settings.round(number)
    place.folder.mkdir(exist_ok=True)
    replies = _replies(place)
    if replies is None:
        if not _run_part(place.folder / "generate.yaml", generating(settings, number), GENERATE, parts, _what(number)):
            return None
        replies = _needed(_replies(place), place.replies)
    check_accepted(settings.config, number, replies)
    cache = _cache(place)
    if cache is None:
        if not _run_part(place.folder / "score.yaml", scoring(settings, number), SCORE, parts, _what(number)):
            return None
        cache = _needed(_cache(place), place.cache)
    trained = _trained(place)
    if trained is None:
        words = (*settings.config.launcher, *TRAIN)
        if not _run_part(place.folder / "train.yaml", training(settings, number), words, parts, _what(number)):
            return None
        trained = _needed(_trained(place), place.training)
    return _record(settings, number, replies, cache, trained)


def _what(number: int) -> str:
    return f"round {number}"


def check_accepted(config: RoundsConfig, number: int, replies: GeneratedManifest) -> None:
    """Raise UserError if fewer of a round's replies are accepted than ``least_accepted``, or none."""
    total, accepted = _total(replies), sum(shard.accepted for shard in replies.shards)
    if accepted and accepted >= config.least_accepted * total:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in _rejected(replies).items())
    raise UserError(
        f"round {number}: {accepted} of {total} replies are accepted ({reasons or 'there are none'}), "
        f"least_accepted wants {config.least_accepted:g} of them; train the student longer on its base caches first, "
        "or lower least_accepted"
    )


def _run_part(path: Path, config: BaseModel, words: Sequence[str], parts: PartProcesses, what: str) -> bool:
    """Run a part with the configuration, which is written to ``path``; False if it was stopped."""
    replace_text(path, _text(config))
    what = f"{what}, {' '.join(words[-2:])} {path}"
    logger.info("%s", what)
    return parts.run((*words, str(path)), what) is not None


def _text(config: BaseModel) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _replies(place: Round) -> GeneratedManifest | None:
    """The manifest of complete replies, or None."""
    storage = Storage(str(place.replies))
    if not storage.exists(GENERATED):
        return None
    manifest = read_generated(storage)
    return manifest if manifest.complete else None


def _cache(place: Round) -> Manifest | None:
    """The manifest of a complete cache, or None."""
    storage = Storage(str(place.cache))
    if not storage.exists(MANIFEST):
        return None
    manifest = read_manifest(storage)
    return manifest if manifest.complete else None


def _trained(place: Round) -> dict[str, Any] | None:
    """The summary of a training that ended, or None."""
    path = place.training / "summary.json"
    if not path.exists() or not place.final.exists():
        return None
    summary: dict[str, Any] = json.loads(path.read_bytes())
    return None if summary["ended"] == "interrupted" else summary


def _needed(found: Any, folder: Path) -> Any:
    if found is None:
        raise UserError(f"{folder}: not complete, although its command has ended; run again")
    return found


def _record(
    settings: Settings, number: int, replies: GeneratedManifest, cache: Manifest, trained: dict[str, Any]
) -> RoundRecord:
    return RoundRecord(
        number=number,
        student=replies.generator.fingerprint,
        prompts=replies.counts.prompts,
        replies=_total(replies),
        accepted=sum(shard.accepted for shard in replies.shards),
        rejected=_rejected(replies),
        new_tokens=sum(shard.new_tokens for shard in replies.shards),
        replies_sha256=replies.sha256,
        cached_samples=cache.totals.samples,
        cached_tokens=cache.totals.tokens,
        cache_bytes=sum(cache.sizes().values()),
        cache_digest=cache.digest(),
        steps=trained["steps"],
        trained_tokens=trained["tokens"],
        divergence=settings.schedule(number)["divergence"],
        validation=trained["validation"],
    )


def _total(replies: GeneratedManifest) -> int:
    return sum(shard.replies for shard in replies.shards)


def _rejected(replies: GeneratedManifest) -> dict[str, int]:
    """Replies that were rejected, by reason."""
    found: dict[str, int] = {}
    for shard in replies.shards:
        for reason, count in shard.rejected.items():
            found[reason] = found.get(reason, 0) + count
    return dict(sorted(found.items()))
