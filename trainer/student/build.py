"""Build the student: load a checkpoint, or make one from a model configuration or from a larger model.

Depth pruning renames ``….layers.7.…`` to ``….layers.3.…`` in the state dict and cuts the configuration's per-layer
lists. Trade-off: teacher and student are in memory together meanwhile; in exchange, any checkpoint format that
transformers loads works.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import UserError
from schemas.train_config import StudentConfig
from teacher_cache.attention_implementation import SDPA, VARLEN, check_attention, exact_attention, missing_in
from teacher_cache.model_class import NESTED_NAMES, is_nested, language_model_class
from teacher_cache.model_folder import local_folder, not_loaded
from trainer.student.generation_config import mend_generation
from trainer.student.student_tokenizer import how_to_trust

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

INIT_FOLDER = "student-init"  # of a run's output: the initial weights, where they are written
RECIPE_FILE = "distill_init.json"  # what they were made from; in every such folder
DENSE, SPARSE_STEP = "mlp_only_layers", "decoder_sparse_step"  # Qwen: layers without experts; every n-th layer has some
FIRST_DENSE = "first_k_dense_replace"  # DeepSeek, GLM: number of layers without experts, the first ones
LAYER = re.compile(r"^((?:\w+\.)*?layers\.)(\d+)(\..+)$")


def random_student(student: StudentConfig, seed: int) -> tuple[Path, "PreTrainedModel"]:
    """Return a new model with random weights, and the folder of its tokenizer. Raises UserError."""
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


def cut_student(
    student: StudentConfig, prune: Callable[["PreTrainedModel", Path], None] | None = None
) -> tuple[Path, "PreTrainedModel"]:
    """Return the layers ``from_layers`` of the teacher (all, if None), or the checkpoint, and its folder.

    prune: gets the whole model in its own dtype, and its folder; changes it and its configuration in place. Raises
    UserError.
    """
    key, name = ("student.teacher", student.teacher) if student.teacher else ("student.checkpoint", student.checkpoint)
    assert name is not None
    folder = local_folder(name, key)
    config = load_model_config(folder, key, student.trust_remote_code)
    _attention(config, student.attention)
    if student.from_layers is not None:
        pruned_config(config, student.from_layers)
    dtype = _dtype(student) if prune is None else "auto"
    model = load_model(folder, key, dtype, trust_remote_code=student.trust_remote_code)
    if prune is not None:
        prune(model, folder)
        config = model.config
    return folder, _of_layers(model, config, student, f"{key}: {folder}").to(_dtype(student))  # type: ignore[arg-type]


def _of_layers(
    model: "PreTrainedModel", config: "PreTrainedConfig", student: StudentConfig, where: str
) -> "PreTrainedModel":
    if student.from_layers is None:
        return model
    cut = _fresh_model(pruned_config(config, student.from_layers), student, where)
    try:
        cut.load_state_dict(pruned_state(model.state_dict(), student.from_layers), strict=True)
    except (RuntimeError, UserError) as error:
        raise UserError(f"student.teacher: a {type(model).__name__} cannot be pruned by layers: {error}") from None
    cut.generation_config = model.generation_config
    return cut


def _fresh_model(model_config: "PreTrainedConfig", student: StudentConfig, where: str) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(
            model_config, dtype=_dtype(student), trust_remote_code=student.trust_remote_code
        )
    except Exception as error:  # third-party configurations can make their class raise anything
        raise not_loaded(error, f"{where}: cannot build a causal language model", how_to_trust("student")) from None


def pruned_config(config: "PreTrainedConfig", from_layers: list[int]) -> "PreTrainedConfig":
    """Return ``config`` cut to the layers ``from_layers``: per-layer lists, and which layers have no experts.

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
        if "layer" in key and key != DENSE and isinstance(value, list) and len(value) == layers:
            settings[key] = [value[layer] for layer in from_layers]
    if isinstance(settings.get(DENSE), list):
        every = settings.get(SPARSE_STEP) or 1
        dense = {layer for layer in range(layers) if layer in settings[DENSE] or (layer + 1) % every}
        settings[DENSE] = [number for number, layer in enumerate(from_layers) if layer in dense]
        settings[SPARSE_STEP] = 1
    if isinstance(first := settings.get(FIRST_DENSE), int):
        settings[FIRST_DENSE] = sum(layer < first for layer in from_layers)
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


def load_student(
    folder: Path,
    student: StudentConfig,
    packing: bool = False,
    bf16: bool = False,
    dtype: "torch.dtype | None" = None,
    quantization: Any = None,
) -> "PreTrainedModel":
    """Load the student in float32, the dtype it is trained in, with ``student.attention``. Raises UserError.

    packing, bf16: how it will run; on GPUs that have the kernel, `auto` then means ``varlen``. dtype, quantization:
    other ones, for weights that are not trained.
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
    return load_model(folder, "student", dtype or torch.float32, attention, student.trust_remote_code, quantization)


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
    folder: Path,
    key: str,
    dtype: "torch.dtype | str",
    attention: str = "auto",
    trust_remote_code: bool = False,
    quantization: Any = None,
) -> "PreTrainedModel":
    """Load the causal language model in ``folder`` (a multimodal model's language model) so that it can be saved again.

    key: the setting to name in a UserError. dtype: "auto" for the folder's own. trust_remote_code: run code that ships
    with the model. quantization: transformers' settings to quantise weights with as they are loaded.
    """
    config = _whole_config(folder, key, trust_remote_code)
    implementation = _attention(config.get_text_config(), attention)
    load, options = _loader(config, f"{key}: {folder}", trust_remote_code)
    if quantization is not None:
        options |= {"quantization_config": quantization}
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
