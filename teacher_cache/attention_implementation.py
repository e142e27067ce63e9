"""Choose an attention implementation of transformers that computes exactly what the model's configuration says.

A kernel that lacks a feature silently drops it: SDPA drops soft caps of the scores (Gemma 2, VaultGemma), SDPA and
Flash Attention 2 drop attention sinks (gpt-oss, Granite SWA, MiMo). Model classes declare which kernels they do not
support, but not the soft cap. Found by running every causal language model of transformers 5.19 with eager attention
and with SDPA.
"""

from typing import Any

from schemas.errors import UserError

EAGER, SDPA, FLASH = "eager", "sdpa", "flash_attention_2"
VARLEN = "varlen"  # of the trainer: Flash Attention 2 without soft caps
MAX_HEAD_SIZE = 256  # of Flash Attention's kernels
SOFT_CAP = "attn_logit_softcapping"


def exact_attention(config: Any) -> str | None:
    """The fastest implementation without extra packages that drops no feature of ``config``.

    None (transformers' default) for model classes unknown to transformers (remote code).
    """
    if not missing_in(config, SDPA):
        return None if _model_class(config) is None else SDPA
    return EAGER


def check_attention(config: Any, implementation: str, key: str) -> None:
    """Raise UserError, naming the setting ``key``, if ``implementation`` drops a feature of ``config``."""
    if missing := missing_in(config, implementation):
        fit = [name for name in (EAGER, SDPA, FLASH) if not missing_in(config, name)]
        raise UserError(
            f"{key}: {implementation} drops {missing} of a {config.model_type} model; set it to {' or '.join(fit)}, or "
            "remove it"
        )


def missing_in(config: Any, implementation: str) -> str | None:
    """Describe the feature that ``implementation`` would drop or cannot run; None if there is none."""
    if implementation == EAGER:
        return None
    cap = getattr(config.get_text_config(), SOFT_CAP, None)
    if implementation in (SDPA, VARLEN) and cap is not None:
        return f"the soft cap of attention scores ({SOFT_CAP} {cap:g})"
    model_class = _model_class(config)
    if model_class is None:
        return None
    if implementation == SDPA:
        return None if model_class._supports_sdpa else "attention as the model class defines it (sinks, biases, …)"
    if implementation == VARLEN:
        if dropout := getattr(config.get_text_config(), "attention_dropout", None):
            return f"attention dropout (attention_dropout {dropout:g})"
        if (size := _head_size(config.get_text_config())) > MAX_HEAD_SIZE:
            return f"attention heads of size {size} (at most {MAX_HEAD_SIZE})"
        implementation = FLASH
    fit = model_class._compatible_flash_implementations  # None: all
    if not model_class._supports_flash_attn or (fit is not None and implementation not in fit):
        return "attention as the model class defines it (sinks, biases, …)"
    return None


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _model_class(config: Any) -> Any:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found
