"""Rounds from top to bottom: the student generates → the teacher scores → the student trains, n times.

Each part is a command of its own, which is given a configuration file in the round's folder and ends before the next
one begins: no two models are in memory together. What is done is told by what the parts leave: complete replies, a
complete cache, a finished training. A round is complete when ``round.json`` is there; only then is anything of it
thrown away.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from schemas.errors import UserError
from schemas.rounds_config import RoundsConfig
from trainer.rounds.round_cost import cost_of_round, say
from trainer.rounds.round_parts import generating, scoring, starting, training
from trainer.rounds.round_results import (
    check_accepted,
    complete_cache,
    complete_replies,
    complete_training,
    record_of,
)
from trainer.rounds.round_settings import Round, Settings, check_tokenizers, settled
from trainer.rounds.rounds_place import (
    RoundRecord,
    complete,
    complete_rounds,
    read_place,
    throw_away,
    write_place,
)
from trainer.run.output_files import replace_text
from trainer.run.owner import Fence, only_run_in
from trainer.run.part_process import PartProcesses

logger = logging.getLogger(__name__)
COMMAND = "train-student rounds"
GENERATE, SCORE, TRAIN = ("teacher-cache", "generate"), ("teacher-cache", "run"), ("train-student", "run")
INIT = ("train-student", "init")
Left = TypeVar("Left")


def plan_rounds(config: RoundsConfig) -> dict[str, Any]:
    """Check the configuration and return what a round costs, without writing anything. Raises UserError."""
    settings = settled(config)
    read_place(settings)
    check_tokenizers(settings)
    counts = _count_prompts(settings, PartProcesses())
    return {} if counts is None else cost_of_round(settings, counts)


def run_rounds(config: RoundsConfig) -> dict[str, Any]:
    """Run all rounds that are not complete; returns the summary.

    On SIGINT, SIGTERM or SIGHUP the part under way is asked to end, and no other begins: ``stopped_by`` is then the
    signal's number. Raises UserError; PartFailed if a part ends with an error.
    """
    settings, parts = settled(config), PartProcesses()
    check_tokenizers(settings)
    with only_run_in(config.output, COMMAND) as fence, parts.listening():
        if _begin(settings, parts):
            _remaining(settings, parts, fence)
    done = complete_rounds(settings)[: config.rounds]
    return {
        "rounds": [record.model_dump() for record in done],
        "complete": len(done) == config.rounds,
        "student": str(settings.student_before(len(done) + 1)),
        "stopped_by": parts.signal_number,
    }


def _begin(settings: Settings, parts: PartProcesses) -> bool:
    """Write the first student and the settings, unless they are there, and say what a round costs.

    False if it was stopped. Raises UserError if the place was begun with other settings.
    """
    present = read_place(settings)
    if not _first_student(settings, parts):
        return False
    counts = _count_prompts(settings, parts) if present is None else present.counts
    if counts is None:
        return False
    logger.info("%s", say(cost_of_round(settings, counts)))
    write_place(settings, counts, present)
    return True


def _first_student(settings: Settings, parts: PartProcesses) -> bool:
    """Write the student of the first round, if it is cut from its teacher; False if it was stopped."""
    if settings.training.kept_checkpoint is not None or settings.student_before(1).exists():
        return True
    return _run_part(settings.output / "start.yaml", starting(settings), INIT, parts, "the start")


def _count_prompts(settings: Settings, parts: PartProcesses) -> dict[str, int] | None:
    """What ``teacher-cache generate --dry-run`` counts, in a process of its own; None if it was stopped."""
    student = settings.student_before(1)
    if not student.exists():
        student = Path(str(settings.training.student.teacher))  # whose tokenizer is the student's
    with TemporaryDirectory() as folder:
        path = Path(folder) / "generate.yaml"
        path.write_text(_text(generating(settings, 1, student)))
        found = parts.run((*GENERATE, str(path), "--dry-run", "--json"), "the prompts", output=True)
    return None if found is None else json.loads(found[found.index("{") :])


def _remaining(settings: Settings, parts: PartProcesses, fence: Fence) -> None:
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
    place, what = settings.round(number), f"round {number}"
    place.folder.mkdir(exist_ok=True)

    def ensured(
        find: Callable[[Round], Left | None],
        left_in: Path,
        configure: Callable[[Settings, int], BaseModel],
        file: str,
        words: Sequence[str],
    ) -> Left | None:
        """What a part leaves, which is run if that is not complete; None if it was stopped."""
        found = find(place)
        if found is None and _run_part(place.folder / file, configure(settings, number), words, parts, what):
            found = find(place)
            if found is None:
                raise UserError(f"{left_in}: not complete, although its command has ended; run again")
        return found

    replies = ensured(complete_replies, place.replies, generating, "generate.yaml", GENERATE)
    if replies is None:
        return None
    check_accepted(settings.config, number, replies)
    cache = ensured(complete_cache, place.cache, scoring, "score.yaml", SCORE)
    if cache is None:
        return None
    words = (*settings.config.launcher, *TRAIN)
    trained = ensured(complete_training, place.training, training, "train.yaml", words)
    return None if trained is None else record_of(settings, number, replies, cache, trained)


def _run_part(path: Path, config: BaseModel, words: Sequence[str], parts: PartProcesses, what: str) -> bool:
    """Run a part with the configuration, which is written to ``path``; False if it was stopped."""
    replace_text(path, _text(config))
    what = f"{what}, {' '.join(words[-2:])} {path}"
    logger.info("%s", what)
    return parts.run((*words, str(path)), what) is not None


def _text(config: BaseModel) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
