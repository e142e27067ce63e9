"""A teacher's maximum sequence length, and which of its parts depend on the sequence length.

Derived from its configuration, before anything is tokenized. The rules are vLLM's (``_get_and_verify_max_len``),
except that YaRN counts with its scaled length if the configuration also gives the unscaled one.
"""

from collections.abc import Callable
from typing import Any

import torch

from schemas.cache_config import CacheConfig
from schemas.errors import UserError

LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
SCALED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def max_length(text_config: Any) -> int | None:
    """Maximum sequence length of the model, in tokens; None if its configuration sets no limit."""
    found = {name: getattr(text_config, name, None) for name in LENGTHS}
    lengths = {name: length for name, length in found.items() if isinstance(length, int)}
    if not lengths:
        return None
    shortest = lengths.get("model_max_length", min(lengths.values()))  # Cohere's key takes precedence
    if "gemma3" in text_config.model_type:
        return shortest
    return max([shortest, *(_scaled(shortest, rope) for rope in rope_settings(text_config))])


def _scaled(length: int, rope: dict[str, Any]) -> int:
    kind, factor = rope.get("rope_type", "default"), rope.get("factor") or 1.0
    if kind in ("yarn", "deepseek_yarn"):
        return int((rope.get("original_max_position_embeddings") or 0) * factor)
    return length if kind in SCALED_ALREADY else int(length * factor)


def rope_settings(text_config: Any) -> list[dict[str, Any]]:
    """Settings of the rotary embeddings: none, one, or one per layer type."""
    settings = getattr(text_config, "rope_parameters", None)
    if not isinstance(settings, dict) or not settings:
        return []
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested if nested and "rope_type" not in settings else [settings]


def check_length(config: CacheConfig, text_config: Any) -> None:
    """Raise UserError unless the teacher supports sequences of ``corpus.max_tokens`` exactly, in this engine."""
    wanted, limit = config.corpus.max_tokens, max_length(text_config)
    if limit is not None and wanted > limit:
        raise UserError(
            f"corpus.max_tokens: {wanted}: the teacher supports at most {limit} tokens; set it to {limit} or less"
        )
    for rope in rope_settings(text_config):
        short = _short_length(rope)
        if short is not None and config.engine.kind == "vllm" and wanted >= short > config.corpus.min_tokens:
            raise UserError(
                f"corpus.max_tokens: {wanted}: the teacher switches rotary frequencies beyond {short} tokens "
                f"(longrope), and vLLM would use those for shorter sequences too; set it to {short - 1} or less, or "
                "set engine.kind: transformers"
            )


def _short_length(rope: dict[str, Any]) -> int | None:
    return rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None


def rope_scale(text_config: Any) -> Callable[[int], object]:
    """A function of sequence length whose value differs exactly where rotary frequencies may differ.

    transformers applies the longest sequence's frequencies to a whole batch, so only equal values may share one.
    """
    ropes = rope_settings(text_config)
    shorts = [short for rope in ropes if (short := _short_length(rope)) is not None]
    trained = text_config.max_position_embeddings if any(map(_is_dynamic, ropes)) else None

    def scale(length: int) -> object:
        return [length > short for short in shorts], trained is not None and max(length, trained)

    return scale


def _is_dynamic(rope: dict[str, Any]) -> bool:
    return "dynamic" in rope.get("rope_type", "default")


def forget_lengths(model: torch.nn.Module) -> None:
    """Reset dynamic rotary embeddings to their initial state: transformers keeps the longest sequence's frequencies."""
    for module in model.modules():
        names = [name for name, _ in module.named_buffers(recurse=False) if name.endswith("original_inv_freq")]
        if not names or "dynamic" not in str(getattr(module, "rope_type", "")):
            continue
        for name in names:
            module.register_buffer(name.replace("original_", ""), getattr(module, name).clone(), persistent=False)
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, module.original_max_seq_len)
