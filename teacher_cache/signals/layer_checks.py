"""Check that a teacher has the configured layers, and a hidden size and attention type that can be stored.

Uses the teacher's configuration alone, before weights are loaded.
"""

from typing import Any

from schemas.cache_config import AttentionCapture, HiddenCapture, Quantised, layer_number
from schemas.errors import UserError


def check_width(signal: str, settings: Quantised, text_config: Any) -> None:
    """Raise UserError if the teacher's hidden states cannot be stored in this dtype."""
    if settings.dtype == "int4" and text_config.hidden_size % 2:
        raise UserError(
            f"capture.{signal}.dtype: int4 packs two channels per byte, but the teacher has an odd hidden size, "
            f"{text_config.hidden_size}; choose int8"
        )


def check_hidden_layers(signal: str, settings: HiddenCapture, text_config: Any) -> None:
    """Raise UserError for missing or repeated layers."""
    num_layers = text_config.num_hidden_layers
    for layer in settings.layers:
        _check_number(f"capture.{signal}.layers", layer, layer_number(layer, num_layers), num_layers)
    numbers = settings.layer_numbers(num_layers)
    if len(set(numbers)) != len(numbers):
        raise UserError(
            f"capture.{signal}.layers: {settings.layers} are layers {numbers} of {num_layers}; list each only once"
        )


def check_attention_layer(signal: str, settings: AttentionCapture, text_config: Any, max_tokens: int) -> None:
    """Raise UserError for a missing layer or attention head, or a layer whose attention rows cannot be stored."""
    num_layers = text_config.num_hidden_layers
    number = layer_number(settings.layer, num_layers)
    _check_number(f"capture.{signal}.layer", settings.layer, number, num_layers)
    kind = attention_kind(text_config, number, max_tokens)
    if kind != "full_attention":
        raise UserError(
            f"capture.{signal}.layer: {settings.layer}: layer {number} of a {text_config.model_type} teacher is of "
            f"type {kind}, whose rows cannot be stored; choose a layer with full attention, or remove capture.{signal}"
        )
    n_heads = text_config.num_attention_heads
    numbers = [] if isinstance(settings.heads, int) else settings.heads
    if settings.n_heads > n_heads or any(head >= n_heads for head in numbers) or len(set(numbers)) != len(numbers):
        raise UserError(
            f"capture.{signal}.heads: {settings.heads}: the teacher has attention heads 0 to {n_heads - 1}; lower the "
            "number, or list each attention head once"
        )


def _check_number(key: str, layer: float, number: int, num_layers: int) -> None:
    if number > num_layers:
        raise UserError(f"{key}: {layer}: the teacher has layers 1 to {num_layers}; choose one of them")


def attention_kind(text_config: Any, number: int, max_tokens: int) -> str:
    """Attention type of layer ``number``; a sliding window as long as the longest sequence is full attention."""
    if getattr(text_config, "kv_lora_rank", None):
        return "multi-head latent attention"
    if text_config.model_type == "gpt_oss":
        return "attention with sinks"
    if getattr(text_config, "alibi", False) or text_config.model_type in ("bloom", "mpt"):
        return "attention with linear biases (ALiBi)"
    shared = getattr(text_config, "num_kv_shared_layers", None) or 0
    if number > text_config.num_hidden_layers - shared:
        return "attention with another layer's keys"
    layer_types = getattr(text_config, "layer_types", None)
    kind = layer_types[number - 1] if layer_types else "full_attention"
    window = getattr(text_config, "sliding_window", None)
    if window is not None and (kind == "sliding_attention" or not layer_types):
        if not getattr(text_config, "use_sliding_window", True) or window >= max_tokens:
            return "full_attention"
        return f"sliding_attention (a window of {window} tokens, sequences have up to {max_tokens})"
    return "full_attention" if (text_config.model_type, kind) == ("falcon_h1", "hybrid") else str(kind)
