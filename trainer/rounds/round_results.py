"""What the parts of a round leave, which tells that they are complete; and the round in numbers."""

import json
from typing import Any

from schemas.errors import UserError
from schemas.generated_manifest import GeneratedManifest
from schemas.manifest import Manifest
from schemas.rounds_config import RoundsConfig
from teacher_cache.generated.generated_place import GENERATED, read_generated
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.storage import MANIFEST, Storage
from trainer.rounds.round_settings import Round, Settings
from trainer.rounds.rounds_place import RoundRecord


def complete_replies(place: Round) -> GeneratedManifest | None:
    """The manifest of complete replies, or None."""
    storage = Storage(str(place.replies))
    if not storage.exists(GENERATED):
        return None
    manifest = read_generated(storage)
    return manifest if manifest.complete else None


def complete_cache(place: Round) -> Manifest | None:
    """The manifest of a complete cache, or None."""
    storage = Storage(str(place.cache))
    if not storage.exists(MANIFEST):
        return None
    manifest = read_manifest(storage)
    return manifest if manifest.complete else None


def complete_training(place: Round) -> dict[str, Any] | None:
    """The summary of a training that ended, or None."""
    path = place.training / "summary.json"
    if not path.exists() or not place.final.exists():
        return None
    summary: dict[str, Any] = json.loads(path.read_bytes())
    return None if summary["ended"] == "interrupted" else summary


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


def record_of(
    settings: Settings, number: int, replies: GeneratedManifest, cache: Manifest, trained: dict[str, Any]
) -> RoundRecord:
    """A complete round in numbers."""
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
