"""The folder of all rounds: the settings that it was begun with, records of complete rounds, what is thrown away."""

import logging
import shutil
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.strict import Strict
from trainer.rounds.round_settings import Round, Settings
from trainer.run.output_files import replace_text
from trainer.run.resume import changes

logger = logging.getLogger(__name__)
SETTINGS_FILE = "rounds.json"
MAX_BYTES = 1 << 20
FREE = (  # settings that may change before the rounds continue: of machines, and of what is kept
    "rounds",
    "keep",
    "least_accepted",
    "launcher",
    "output",
    "score.output.encode_threads",
    "train.data.local_copies",
    "train.data.num_workers",
    "train.data.retarget_cache",
    "train.student.attention",
    *(f"train.loop.{key}" for key in ("micro_batch_size", "gradient_accumulation", "gradient_checkpointing")),
    *(f"train.loop.{key}" for key in ("compile", "cpu_offload", "log_every", "save_every", "keep_checkpoints")),
)  # and of the engines all but their kind
Model = TypeVar("Model", bound=BaseModel)


class PlaceSettings(Strict):
    """``rounds.json``: the settings that matter, and what there is to reply to."""

    format: Literal[1] = 1
    settings: dict[str, Any]
    counts: dict[str, int]  # as `teacher-cache generate --dry-run` gives them


class RoundRecord(Strict):
    """``round.json``: a complete round in numbers."""

    number: int
    student: str  # fingerprint of the generator
    prompts: int
    replies: int
    accepted: int
    rejected: dict[str, int]
    new_tokens: int
    replies_sha256: str
    cached_samples: int
    cached_tokens: int
    cache_bytes: int
    cache_digest: str
    steps: int
    trained_tokens: int
    divergence: str
    validation: dict[str, float]


def read_place(settings: Settings) -> PlaceSettings | None:
    """What the place was begun with; None if it is new. Raises UserError naming each setting that is another now."""
    path = settings.output / SETTINGS_FILE
    if not path.exists():
        return None
    present = _read(PlaceSettings, path)
    found = changes(present.settings, _lasting(settings))  # of keys and rounds that both have
    differing = [f"{key}: {old!r} there, {new!r} now" for key, old, new, _ in found]
    if differing:
        raise UserError(
            f"{path}: these rounds were begun with other settings: {'; '.join(differing)}; choose another output, or "
            "use the same settings"
        )
    return present


def write_place(settings: Settings, counts: dict[str, int], present: PlaceSettings | None) -> None:
    """Write what the rounds are begun with, unless it is there for as many rounds."""
    lasting = _lasting(settings)
    if present is None or len(present.settings["schedule"]) < len(lasting["schedule"]):
        replace_text(settings.output / SETTINGS_FILE, _text(PlaceSettings(settings=lasting, counts=counts)))


def complete_rounds(settings: Settings) -> list[RoundRecord]:
    """The rounds that are complete, in order."""
    found: list[RoundRecord] = []
    while (path := settings.round(len(found) + 1).record).exists():
        found.append(_read(RoundRecord, path))
    return found


def complete(place: Round, record: RoundRecord) -> None:
    """Write the mark that a round is complete."""
    replace_text(place.record, _text(record))


def throw_away(settings: Settings, done: int) -> None:
    """Remove what complete rounds need no more: checkpoints, and replies and caches as ``keep`` says."""
    spared = {"caches": done, "latest": 1, "none": 0}[settings.config.keep]
    for number in range(1, done + 1):
        place = settings.round(number)
        for folder in place.training.glob("checkpoint-*"):
            shutil.rmtree(folder)
        for folder in (place.cache, place.replies) if number <= done - spared else ():
            if folder.exists():
                logger.info("%s: removed, keep is %s", folder, settings.config.keep)
                shutil.rmtree(folder)


def _lasting(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values, with what they refer to."""
    tree = settings.config.model_dump(mode="json", exclude={"train_config", "steps", "lr", "divergence"})
    tree["train"] = settings.training.model_dump(mode="json", exclude={"output"})
    tree["score"]["capture"] = settings.capture.model_dump(mode="json")
    tree["schedule"] = {str(number): settings.schedule(number) for number in range(1, settings.config.rounds + 1)}
    for part in ("generate", "score"):
        tree[part]["engine"] = {"kind": tree[part]["engine"]["kind"]}
    for path in FREE:
        _remove(tree, path.split("."))
    return tree


def _remove(tree: dict[str, Any], keys: list[str]) -> None:
    for key in keys[:-1]:
        tree = tree[key]
    tree.pop(keys[-1], None)


def _read(model: type[Model], path: Path) -> Model:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: {path.stat().st_size} bytes, at most {MAX_BYTES} are read; restore the file")
    return parse_json(model, path.read_bytes(), where=str(path))


def _text(model: BaseModel) -> str:
    return model.model_dump_json(indent=1) + "\n"
