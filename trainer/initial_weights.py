"""The student's initial weights: taken from where they are, or written to ``OUTPUT/student-init`` once.

That is an ordinary Hugging Face folder. Training needs neither the teacher nor the cache that channels were measured on
after that.
"""

import hashlib
import logging
import os
import shutil
from pathlib import Path

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.strict import Strict
from schemas.train_config import ActivationsConfig, FfnConfig, QuantizationConfig, TrainConfig
from teacher_cache.model_folder import local_folder
from teacher_cache.shards.storage import Storage
from teacher_cache.teacher import model_fingerprint
from teacher_cache.trust.required import required_manifest
from trainer.data.shares import required_of
from trainer.measured_pruning import FfnPruning, PrunedFfns, measured_on
from trainer.quantization.folded_start import folded_start
from trainer.quantization.scales_file import write_scales
from trainer.student.build import INIT_FOLDER, RECIPE_FILE, cut_student, random_student
from trainer.student.student_tokenizer import copy_tokenizer

logger = logging.getLogger(__name__)


class InitRecipe(Strict):
    """``distill_init.json``: what the folder was made from, so that a changed configuration is detected."""

    config: str | None
    teacher: str | None
    from_layers: list[int] | None
    dtype: str
    seed: int | None  # of random weights
    checkpoint: str | None = None
    ffn: FfnConfig | None = None  # with the cache that was measured on
    source: str = ""  # fingerprint of the configuration or model, whose path may change
    pruned: PrunedFfns | None = None
    quantization: QuantizationConfig | None = None  # what scales depend on, all else as by default


def materialise_student(config: TrainConfig) -> Path:
    """Return the folder with the student's initial weights; write ``OUTPUT/student-init`` if needed and absent.

    Raises UserError if the model cannot be read or cut as configured, or the folder was made from other settings.
    """
    student = config.student
    if config.kept_checkpoint is not None:
        return local_folder(config.kept_checkpoint, "student.checkpoint")
    folder = Path(config.output) / INIT_FOLDER
    recipe = InitRecipe(
        config=student.config,
        teacher=student.teacher,
        from_layers=student.from_layers,
        dtype=student.dtype,
        seed=config.loop.seed if student.config is not None else None,
        checkpoint=student.checkpoint,
        ffn=None if student.ffn is None else student.ffn.model_copy(update={"cache": measured_on(config).url}),
        quantization=None if config.quantization is None else _start_of(config.quantization),
    )
    if folder.exists():
        _check_recipe(folder, recipe, config)
        return folder
    if student.config is not None:
        source, model = random_student(student, config.loop.seed)
    elif student.ffn is None:
        source, model = cut_student(student)
    else:
        pruning = FfnPruning(config)
        source, model = cut_student(student, pruning)
        recipe = recipe.model_copy(update={"pruned": pruning.done})
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if config.quantization is not None:
        model.float()
        write_scales(unfinished, *folded_start(model, source, config))
    model.save_pretrained(unfinished)
    copy_tokenizer(source, unfinished, student.trust_remote_code)
    recipe = recipe.model_copy(update={"source": _fingerprint(recipe) or ""})
    (unfinished / RECIPE_FILE).write_text(recipe.model_dump_json(indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, folder)
    logger.info("wrote the student's initial weights to %s (%d parameters)", folder, model.num_parameters())
    return folder


def _start_of(quantization: QuantizationConfig) -> QuantizationConfig:
    """The settings that initial weights and scales depend on."""
    start = {"bits", "group_size", "targets", "calibration_samples"}
    clip = None if quantization.activations is None else quantization.activations.clip
    activations = None if clip is None else ActivationsConfig(clip=clip)
    return QuantizationConfig(**quantization.model_dump(include=start), activations=activations)


def read_recipe(folder: Path) -> InitRecipe | None:
    """The recipe of a ``student-init`` folder; None of any other folder. Raises UserError if it is damaged."""
    path = folder / RECIPE_FILE
    return parse_json(InitRecipe, path.read_bytes(), where=str(path)) if path.is_file() else None


def pruned_in(folder: Path) -> PrunedFfns | None:
    """What ``student.ffn`` removed from the FFNs of the model in ``folder``; None if nothing. Raises UserError."""
    recipe = read_recipe(folder)
    return None if recipe is None else recipe.pruned


def _check_recipe(folder: Path, recipe: InitRecipe, config: TrainConfig) -> None:
    made_from = read_recipe(folder)
    if made_from is None:
        raise UserError(f"{folder}: exists but has no {RECIPE_FILE}; remove the folder or change `output`")
    measured = {"source", "pruned"}
    found, wanted_of = made_from.model_dump(exclude=measured), recipe.model_dump(exclude=measured)
    places = {"config", "teacher", "checkpoint"}
    moved = all((found[key] is None) == (wanted_of[key] is None) for key in places)
    moved = moved and any(found[key] != wanted_of[key] for key in places) and made_from.source == _fingerprint(recipe)
    if _has_moved_cache(made_from, recipe, config):
        found["ffn"] = wanted_of["ffn"]
    for key, wanted in wanted_of.items():
        if found[key] != wanted and not (moved and key in places):
            raise UserError(
                f"{folder}: made with {key} = {found[key]!r}, but the configuration says {wanted!r}; "
                "remove the folder to make it again, or change `output`"
            )


def _has_moved_cache(made_from: InitRecipe, recipe: InitRecipe, config: TrainConfig) -> bool:
    """Whether only the place of the cache that channels were measured on has changed."""
    if made_from.ffn is None or made_from.pruned is None or recipe.ffn is None or made_from.ffn == recipe.ffn:
        return False
    if made_from.ffn.model_copy(update={"cache": recipe.ffn.cache}) != recipe.ffn:
        return False
    share = measured_on(config)
    try:
        found = required_manifest(Storage(share.url), required_of(share, config.data)).digest()
    except UserError:
        return False
    return found == made_from.pruned.cache


def _fingerprint(recipe: InitRecipe) -> str | None:
    """Fingerprint of the student's source (model or configuration), independent of its path; None if it is gone."""
    try:
        for key, model in (("student.teacher", recipe.teacher), ("student.checkpoint", recipe.checkpoint)):
            if model is not None:
                return model_fingerprint(str(local_folder(model, key)), key=key)
        path = Path(str(recipe.config))
        path = path if path.is_file() else local_folder(str(path), "student.config")
        return hashlib.sha256((path / "config.json" if path.is_dir() else path).read_bytes()).hexdigest()
    except (UserError, OSError):
        return None
