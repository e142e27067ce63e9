"""Reference values, independent of both engines: one unpadded sequence at a time through transformers on the CPU.

Eager attention, float32. Hidden states are those that the model returns (``output_hidden_states``), attention rows are
the weights that the eager layer returns. Nothing is batched or quantised.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from schemas.cache_config import CaptureConfig, TeacherConfig, layer_number
from teacher_cache.decoder_layers import decoder_layers
from teacher_cache.model_class import model_class
from teacher_cache.model_folder import not_loaded
from teacher_cache.teacher import load_model_config


@dataclass(frozen=True)
class Computed:
    """All rows of one sequence, float32 on the CPU."""

    logits_SV: torch.Tensor
    final_SD: torch.Tensor
    hidden_SD: dict[int, torch.Tensor]  # residual stream after each captured layer, by layer number, rising
    weights_HSS: torch.Tensor | None  # None: not captured, or not exactly one module of the layer returns weights


class Reference:
    """The teacher in transformers, in float32; ``in_dtype`` converts it, to measure rounding in that dtype."""

    def __init__(self, teacher: TeacherConfig) -> None:
        """Load the model. Raises UserError if that fails."""
        model_config = load_model_config(teacher)
        self._text_config = model_config.get_text_config()
        try:
            self._model = model_class(model_config).from_pretrained(
                teacher.path,
                revision=teacher.revision,
                dtype=torch.float32,
                trust_remote_code=teacher.trust_remote_code,
                attn_implementation="eager",
            )
        except Exception as error:  # whatever the loader of this model, and its file formats, may raise
            problem = f"teacher.path: {teacher.path}: cannot load the model in transformers"
            raise not_loaded(error, problem) from error
        self._model.eval()

    def in_dtype(self, dtype: torch.dtype) -> None:
        """Convert the model to ``dtype``, for all later passes."""
        self._model.to(dtype)

    @torch.inference_mode()
    def compute(self, input_ids: np.ndarray, capture: CaptureConfig) -> Computed:
        """Run one forward pass; input_ids: [S]."""
        num_layers = self._text_config.num_hidden_layers
        layers = decoder_layers(self._model, num_layers) if capture.hidden or capture.attention else None
        numbers = capture.hidden.layer_numbers(num_layers) if capture.hidden else []
        with _recorded(self._model.get_output_embeddings(), before=True) as final:
            if layers is None:
                output, last, weights = self._forward(input_ids), [], []
            else:
                number = layer_number(capture.attention.layer, num_layers) if capture.attention else 1
                with _recorded(layers[-1]) as last, _recorded_weights(layers[number - 1]) as weights:
                    output = self._forward(input_ids, output_hidden_states=bool(numbers))
        states = {n: last[0] if n == num_layers else output.hidden_states[n] for n in numbers}
        return Computed(
            output.logits[0, :, : self._text_config.vocab_size].float(),
            final[0][0].float(),
            {number: state[0].float() for number, state in states.items()},
            weights[0][0].float() if capture.attention is not None and len(weights) == 1 else None,
        )

    def _forward(self, input_ids: np.ndarray, **options: Any) -> Any:
        ids_1S = torch.from_numpy(input_ids.astype(np.int64))[None]
        return self._model(input_ids=ids_1S, attention_mask=torch.ones_like(ids_1S), use_cache=False, **options)


@contextmanager
def _recorded(module: Any, before: bool = False) -> Iterator[list[torch.Tensor]]:
    """Record the module's output (the first value of a tuple); with ``before``, its first argument."""
    recorded: list[torch.Tensor] = []
    if before:
        handle = module.register_forward_pre_hook(lambda _module, args: recorded.append(args[0]))
    else:
        handle = module.register_forward_hook(
            lambda _module, _args, output: recorded.append(output[0] if isinstance(output, tuple) else output)
        )
    try:
        yield recorded
    finally:
        handle.remove()


@contextmanager
def _recorded_weights(layer: Any) -> Iterator[list[torch.Tensor]]:
    """Record the attention weights [1, H, S, S] that modules of the layer return beside their output."""
    recorded: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        if isinstance(output, tuple):
            recorded.extend(
                part
                for part in output[1:2]
                if isinstance(part, torch.Tensor) and part.ndim == 4 and part.shape[2] == part.shape[3]
            )

    handles = [child.register_forward_hook(keep) for child in layer.children()]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
