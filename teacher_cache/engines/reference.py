"""The independent path: one sequence through transformers, eager attention, float32, on the CPU, no hook of an engine.

The residual stream is what the model itself reports (``output_hidden_states``), attention rows are the weights of the
eager layer, and nothing is batched, padded or stored.
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
    hidden_SD: dict[int, torch.Tensor]  # by layer, rising, those that are asked for
    weights_HSS: torch.Tensor | None  # None: not asked for, or not exactly one module of the layer reports weights


class Reference:
    """The teacher in transformers. ``in_dtype`` gives the same in a narrower type, whose noise can so be measured."""

    def __init__(self, teacher: TeacherConfig) -> None:
        """Load it. Raises UserError when that fails."""
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
        """Compute in ``dtype`` from now on."""
        self._model.to(dtype)

    @torch.inference_mode()
    def compute(self, input_ids: np.ndarray, capture: CaptureConfig) -> Computed:
        """One forward pass of the ids [S]."""
        num_layers = self._text_config.num_hidden_layers
        layers = decoder_layers(self._model, num_layers) if capture.hidden or capture.attention else None
        numbers = capture.hidden.layer_numbers(num_layers) if capture.hidden else []
        with _kept(self._model.get_output_embeddings(), before=True) as final:
            if layers is None:
                output, last, weights = self._forward(input_ids), [], []
            else:
                number = layer_number(capture.attention.layer, num_layers) if capture.attention else 1
                with _kept(layers[-1]) as last, _weights(layers[number - 1]) as weights:
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
def _kept(module: Any, before: bool = False) -> Iterator[list[torch.Tensor]]:
    """What the module gives, or (``before``) is given."""
    kept: list[torch.Tensor] = []
    if before:
        handle = module.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    else:
        handle = module.register_forward_hook(
            lambda _module, _args, output: kept.append(output[0] if isinstance(output, tuple) else output)
        )
    try:
        yield kept
    finally:
        handle.remove()


@contextmanager
def _weights(layer: Any) -> Iterator[list[torch.Tensor]]:
    """Softmaxed weights [1, H, S, S] that modules of the layer give beside their output."""
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        if isinstance(output, tuple):
            kept.extend(
                part
                for part in output[1:2]
                if isinstance(part, torch.Tensor) and part.ndim == 4 and part.shape[2] == part.shape[3]
            )

    handles = [child.register_forward_hook(keep) for child in layer.children()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
