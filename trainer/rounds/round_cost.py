"""What a round costs, before it begins: prompts, tokens, disk and steps."""

from typing import Any

from schemas.manifest import Manifest
from teacher_cache.shards.storage import Storage
from teacher_cache.trust.required import required_manifest
from trainer.data.shares import required_of
from trainer.rounds.round_settings import Settings
from trainer.student.stored_parameters import stored_parameters

REPLY_BYTES = 8  # of a token of prompt or reply: its id, and its text before compression
STATE_BYTES = 12  # of a parameter in a checkpoint: weight and two AdamW states, float32


def cost_of_round(settings: Settings, counts: dict[str, int]) -> dict[str, Any]:
    """Upper bounds for one round, without those that nothing tells.

    counts: as ``teacher-cache generate --dry-run`` gives them.
    """
    config, loop = settings.config, settings.training.loop
    tokens = counts["tokens_at_most"]
    per_token = _bytes_per_token(settings)
    parameters = stored_parameters(settings.student_before(1))
    disk = {
        "replies, bytes": REPLY_BYTES * tokens,
        "cache, bytes": round(per_token * tokens),
        "checkpoints while training, bytes": parameters * STATE_BYTES * (loop.keep_checkpoints + 1),
        "final model, bytes": parameters * (4 if settings.training.student.dtype == "float32" else 2),
    }
    steps = [settings.schedule(number)["steps"] for number in range(1, config.rounds + 1)]
    return {
        "rounds": config.rounds,
        "prompts": counts["prompts"],
        "replies": counts["replies"],
        "tokens to generate at most": counts["new_tokens_at_most"],
        "tokens to score at most": tokens,
        "steps": [each or "as epochs take" for each in steps],
        "samples per step and process": loop.micro_batch_size * loop.gradient_accumulation,
        "share of the student's text": config.mixture.share,
        "disk at most": {name: size for name, size in disk.items() if size},
    }


def say(cost: dict[str, Any]) -> str:
    """The cost in one line."""
    return (
        f"each of {cost['rounds']} rounds: {cost['prompts']:,} prompts, {cost['replies']:,} replies, at most "
        f"{cost['tokens to generate at most']:,} tokens to generate and {cost['tokens to score at most']:,} to score, "
        f"{sum(cost['disk at most'].values()) / 2**30:.3g} GiB of disk; steps: {', '.join(map(str, cost['steps']))}"
    )


def _bytes_per_token(settings: Settings) -> float:
    """Of the first base cache that stores what the rounds' caches will; 0 if none does."""
    data = settings.training.data
    for share in data.shares if settings.config.mixture.share < 1 else []:
        manifest: Manifest = required_manifest(Storage(share.url), required_of(share, data))
        if manifest.capture == settings.capture and manifest.totals.tokens:
            return sum(manifest.bytes_per_token().values())
    return 0.0
