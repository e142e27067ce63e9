"""What a round costs, before it begins: prompts, tokens, disk and steps."""

from pathlib import Path
from typing import Any

from schemas.manifest import Manifest
from teacher_cache.shards.storage import Storage
from teacher_cache.trust.required import required_manifest
from trainer.data.shares import required_of
from trainer.rounds.round_settings import Settings

REPLY_BYTES = 8  # of a token of prompt or reply: its id, and its text before compression
STATE_BYTES = 12  # of a parameter in a checkpoint: weight and two AdamW states, float32


def cost_of_round(settings: Settings, counts: dict[str, int]) -> dict[str, Any]:
    """Upper bounds for one round; None where nothing tells.

    counts: as ``teacher-cache generate --dry-run`` gives them.
    """
    config, loop = settings.config, settings.training.loop
    tokens = counts["tokens_at_most"]
    per_token = _bytes_per_token(settings)
    parameters = _parameters(settings.student_before(1))
    return {
        "rounds": config.rounds,
        "prompts": counts["prompts"],
        "replies": counts["replies"],
        "tokens to generate at most": counts["new_tokens_at_most"],
        "tokens to score at most": tokens,
        "steps": [settings.schedule(number)["steps"] for number in range(1, config.rounds + 1)],
        "samples per step and process": loop.micro_batch_size * loop.gradient_accumulation,
        "share of the student's text": config.mixture.share,
        "disk at most": {
            "replies, bytes": REPLY_BYTES * tokens,
            "cache, bytes": None if per_token is None else round(per_token * tokens),
            "checkpoints while training, bytes": _times(parameters, STATE_BYTES * (loop.keep_checkpoints + 1)),
            "final model, bytes": _times(parameters, 4 if settings.training.student.dtype == "float32" else 2),
        },
    }


def say(cost: dict[str, Any]) -> str:
    """The cost in one line."""
    disk = [size for size in cost["disk at most"].values() if size is not None]
    steps = ", ".join("as epochs take" if each is None else f"{each:,}" for each in cost["steps"])
    return (
        f"each of {cost['rounds']} rounds: {cost['prompts']:,} prompts, {cost['replies']:,} replies, at most "
        f"{cost['tokens to generate at most']:,} tokens to generate and {cost['tokens to score at most']:,} to score, "
        f"{sum(disk) / 2**30:.3g} GiB of disk; steps: {steps}"
    )


def _bytes_per_token(settings: Settings) -> float | None:
    """Of the first base cache that stores what the rounds' caches will."""
    data = settings.training.data
    for share in data.shares if settings.config.mixture.share < 1 else []:
        manifest: Manifest = required_manifest(Storage(share.url), required_of(share, data))
        if manifest.capture == settings.capture and manifest.totals.tokens:
            return sum(manifest.bytes_per_token().values())
    return None


def _parameters(student: Path) -> int | None:
    """Parameters in a folder's safetensors files; None if it has none."""
    from safetensors import safe_open

    total = 0
    for path in sorted(student.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                size = 1
                for side in file.get_slice(name).get_shape():
                    size *= side
                total += size
    return total or None


def _times(number: int | None, factor: int) -> int | None:
    return None if number is None else number * factor
