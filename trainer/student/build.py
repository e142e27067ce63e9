"""Build the student: from a checkpoint, from a model configuration, or from a subset of the teacher's layers.

The last two write ``OUTPUT/student-init`` once, an ordinary Hugging Face folder; training does not need the teacher
after that. Depth pruning renames ``….layers.7.…`` to ``….layers.3.…`` in the state dict and cuts the configuration's
per-layer lists. Trade-off: teacher and student are in memory together while pruning; in exchange, any checkpoint format
that transformers loads works.
"""

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.strict import Strict
from schemas.train_config import StudentConfig, TrainConfig
from teacher_cache.attention_implementation import SDPA, VARLEN, check_attention, exact_attention, missing_in
from teacher_cache.model_class import NESTED_NAMES, is_nested, language_model_class
from teacher_cache.model_folder import local_folder, not_loaded
from teacher_cache.teacher import model_fingerprint
from trainer.student.generation_config import mend_generation
from trainer.student.student_tokenizer import copy_tokenizer, how_to_trust

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

INIT_FOLDER = "student-init"
RECIPE_FILE = "distill_init.json"
LAYER = re.compile(r"^((?:\w+\.)*?layers\.)(\d+)(\..+)$")


class InitRecipe(Strict):
    """``distill_init.json``: what the folder was made from, so that a changed configuration is detected."""

    config: str | None
    teacher: str | None
    from_layers: list[int] | None
    dtype: str
    seed: int | None  # of random weights
    source: str = ""  # fingerprint of the configuration or teacher, whose path may change


def materialise_student(config: TrainConfig) -> Path:
    """Return the folder with the student's initial weights; write ``OUTPUT/student-init`` if needed and absent.

    Raises UserError if the model cannot be read, a layer does not exist, or the folder was made from other settings.
    """
    student = config.student
    if student.checkpoint is not None:
        return local_folder(student.checkpoint, "student.checkpoint")
    folder = Path(config.output) / INIT_FOLDER
    recipe = InitRecipe(
        config=student.config,
        teacher=student.teacher,
        from_layers=student.from_layers,
        dtype=student.dtype,
        seed=config.loop.seed if student.config is not None else None,
    )
    if folder.exists():
        _check_recipe(folder, recipe)
        return folder
    source, model = _random_student(student, config.loop.seed) if student.config else _pruned_student(student)
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    model.save_pretrained(unfinished)
    copy_tokenizer(source, unfinished, student.trust_remote_code)
    recipe = recipe.model_copy(update={"source": _fingerprint(recipe) or ""})
    (unfinished / RECIPE_FILE).write_text(recipe.model_dump_json(indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, folder)
    logger.info("wrote the student's initial weights to %s (%d parameters)", folder, model.num_parameters())
    return folder


def _check_recipe(folder: Path, recipe: InitRecipe) -> None:
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise UserError(f"{folder}: exists but has no {RECIPE_FILE}; remove the folder or change `output`")
    made_from = parse_json(InitRecipe, path.read_bytes(), where=str(path))
    found, wanted_of = made_from.model_dump(exclude={"source"}), recipe.model_dump(exclude={"source"})
    places = {"config", "teacher"}
    moved = all((found[key] is None) == (wanted_of[key] is None) for key in places)
    moved = moved and any(found[key] != wanted_of[key] for key in places) and made_from.source == _fingerprint(recipe)
    for key, wanted in wanted_of.items():
        if found[key] != wanted and not (moved and key in places):
            raise UserError(
                f"{folder}: made with {key} = {found[key]!r}, but the configuration says {wanted!r}; "
                "remove the folder to make it again, or change `output`"
            )


def _fingerprint(recipe: InitRecipe) -> str | None:
    """Fingerprint of the student's source (teacher or configuration), independent of its path; None if it is gone."""
    try:
        if recipe.teacher is not None:
            folder = local_folder(recipe.teacher, "student.teacher")
            return model_fingerprint(str(folder), key="student.teacher")
        path = Path(str(recipe.config))
        path = path if path.is_file() else local_folder(str(path), "student.config")
        return hashlib.sha256((path / "config.json" if path.is_dir() else path).read_bytes()).hexdigest()
    except (UserError, OSError):
        return None


def _random_student(student: StudentConfig, seed: int) -> tuple[Path, "PreTrainedModel"]:
    from transformers import set_seed

    assert student.config is not None
    path = Path(student.config)
    folder = path.parent if path.is_file() else local_folder(student.config, "student.config")
    model_config = load_model_config(path if path.is_file() else folder, "student.config", student.trust_remote_code)
    _attention(model_config, student.attention)
    set_seed(seed)
    model = _fresh_model(model_config, student, f"student.config: {path}")
    mend_generation(model, str(path))
    return folder, model


def _pruned_student(student: StudentConfig) -> tuple[Path, "PreTrainedModel"]:
    assert student.teacher is not None
    assert student.from_layers is not None
    folder = local_folder(student.teacher, "student.teacher")
    teacher_config = load_model_config(folder, "student.teacher", student.trust_remote_code)
    _attention(teacher_config, student.attention)
    model_config = pruned_config(teacher_config, student.from_layers)
    teacher = load_model(folder, "student.teacher", _dtype(student), trust_remote_code=student.trust_remote_code)
    model = _fresh_model(model_config, student, f"student.teacher: {folder}")
    try:
        model.load_state_dict(pruned_state(teacher.state_dict(), student.from_layers), strict=True)
    except (RuntimeError, UserError) as error:
        raise UserError(f"student.teacher: a {type(teacher).__name__} cannot be pruned by layers: {error}") from None
    model.generation_config = teacher.generation_config
    return folder, model


def _fresh_model(model_config: "PreTrainedConfig", student: StudentConfig, where: str) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(
            model_config, dtype=_dtype(student), trust_remote_code=student.trust_remote_code
        )
    except Exception as error:  # third-party configurations can make their class raise anything
        raise not_loaded(error, f"{where}: cannot build a causal language model", how_to_trust("student")) from None


def pruned_config(config: "PreTrainedConfig", from_layers: list[int]) -> "PreTrainedConfig":
    """Return ``config`` cut to the layers ``from_layers``, per-layer lists (``layer_types``) included.

    Raises UserError if a layer does not exist.
    """
    settings: dict[str, Any] = config.to_dict()
    layers = settings.get("num_hidden_layers")
    if not isinstance(layers, int):
        raise UserError(f"student.teacher: {type(config).__name__} has no num_hidden_layers; it cannot be pruned")
    for layer in from_layers:
        if layer >= layers:
            raise UserError(
                f"student.from_layers: the teacher has {layers} layers, numbered 0 to {layers - 1}; got {layer}"
            )
    for key, value in settings.items():
        if "layer" in key and isinstance(value, list) and len(value) == layers:
            settings[key] = [value[layer] for layer in from_layers]
    settings["num_hidden_layers"] = len(from_layers)
    return type(config).from_dict(settings)


def pruned_state(state: dict[str, "torch.Tensor"], from_layers: list[int]) -> dict[str, "torch.Tensor"]:
    """Rename layer ``from_layers[i]`` to i and drop all other layers. Raises UserError if ``state`` has no layers."""
    kept: dict[str, torch.Tensor] = {}
    renamed = False
    for name, tensor in state.items():
        match = LAYER.match(name)
        if match is None:
            kept[name] = tensor
            continue
        for new, old in enumerate(from_layers):
            if int(match[2]) == old:
                kept[f"{match[1]}{new}{match[3]}"] = tensor
                renamed = True
    if not renamed:
        raise UserError("no weights are named `….layers.N.…`")
    return kept


def load_student(folder: Path, student: StudentConfig, packing: bool = False, bf16: bool = False) -> "PreTrainedModel":
    """Load the student in float32, the dtype it is trained in, with ``student.attention``. Raises UserError.

    packing, bf16: how it will run; on GPUs that have the kernel, `auto` then means ``varlen``.
    """
    import torch

    attention: str = student.attention
    if attention == "auto" and packing and bf16 and _has_varlen_kernel():
        config = load_model_config(folder, "student", student.trust_remote_code)
        attention = VARLEN if exact_attention(config) == SDPA and missing_in(config, VARLEN) is None else attention
    if attention == VARLEN and torch.cuda.is_available() and not (bf16 and _has_varlen_kernel()):
        raise UserError(
            "student.attention: varlen takes 16-bit inputs on GPUs, from A100 on; set loop.bf16: true, or "
            "student.attention: sdpa"
        )
    return load_model(folder, "student", torch.float32, attention, student.trust_remote_code)


def _has_varlen_kernel() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def load_model_config(path: Path, key: str, trust_remote_code: bool = False) -> "PreTrainedConfig":
    """Read a model folder's configuration; of a multimodal model, its language model's.

    key: the setting to name in a UserError. trust_remote_code: run code that ships with the model.
    """
    return _whole_config(path, key, trust_remote_code).get_text_config()


def _whole_config(path: Path, key: str, trust_remote_code: bool) -> "PreTrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # third-party configurations can make their class raise anything
        problem = f"{key}: {path} (exists): cannot read a model configuration"
        raise not_loaded(error, problem, how_to_trust(key), "; give the folder of a Hugging Face model") from None


def load_model(
    folder: Path, key: str, dtype: "torch.dtype", attention: str = "auto", trust_remote_code: bool = False
) -> "PreTrainedModel":
    """Load the causal language model in ``folder`` (a multimodal model's language model) so that it can be saved again.

    key: the setting to name in a UserError. trust_remote_code: run code that ships with the model.
    """
    config = _whole_config(folder, key, trust_remote_code)
    implementation = _attention(config.get_text_config(), attention)
    load, options = _loader(config, f"{key}: {folder}", trust_remote_code)
    try:
        model, report = load(
            folder,
            dtype=dtype,
            attn_implementation=implementation,
            output_loading_info=True,
            local_files_only=True,
            **options,
        )
    except Exception as error:  # third-party models and file formats can raise anything
        raise not_loaded(error, f"{key}: {folder}: cannot load the model", how_to_trust(key)) from None
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        raise UserError(f"{key}: {folder}: {len(report['missing_keys'])} weights are missing, the first is {first}")
    if is_nested(config):
        vars(model).pop("_weight_conversions", None)  # else it would be saved under its nested names
    mend_generation(model, str(folder))
    return model


def _loader(config: "PreTrainedConfig", where: str, trust_remote_code: bool) -> tuple[Any, dict[str, Any]]:
    """Return the loader of this configuration's causal language model and its keyword arguments."""
    from transformers import AutoModelForCausalLM

    if not is_nested(config):
        return AutoModelForCausalLM.from_pretrained, {"trust_remote_code": trust_remote_code}
    language_model = language_model_class(config)
    if language_model is None:
        raise UserError(
            f"{where}: the language model of a {type(config).__name__} has no class of its own in transformers; choose "
            "a model for text"
        )
    return language_model.from_pretrained, {"config": config.get_text_config(), "key_mapping": NESTED_NAMES}


def _attention(config: "PreTrainedConfig", attention: str) -> str | None:
    """Resolve ``student.attention`` for this model. Raises UserError if the implementation would drop a feature."""
    if attention == "auto":
        return exact_attention(config)
    check_attention(config, attention, key="student.attention")
    if attention == VARLEN:
        import trainer.student.varlen_attention  # noqa: F401  # registers it
    return attention


def _dtype(student: StudentConfig) -> "torch.dtype":
    import torch

    return getattr(torch, student.dtype)
