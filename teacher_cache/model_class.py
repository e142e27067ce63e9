"""Choose the transformers class that loads a model used for text."""

from typing import Any

NESTED_NAMES = {  # weight name prefixes: nested in a multimodal model → standalone language model
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}


def model_class(model_config: Any) -> Any:
    """AutoModelForCausalLM, or AutoModelForImageTextToText if only that supports the model."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind = type(model_config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def is_nested(model_config: Any) -> bool:
    """Whether this is a multimodal transformers model whose language model has its own configuration."""
    text_config = model_config.get_text_config()
    return text_config is not model_config and type(model_config).__module__.startswith("transformers.")


def language_model_class(model_config: Any) -> Any:
    """The standalone class of a nested language model; None if transformers has none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config.get_text_config()), None)
    return found[0] if isinstance(found, tuple) else found
