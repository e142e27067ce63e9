"""The part of the vLLM engine that runs inside vLLM's worker, next to the model.

A forward hook on the outer model sees the ids, positions and final hidden states of every scheduled token. The
head is applied to all of them in row chunks and only the reduced rows are kept: no Python object per entry ever exists.
It relies on ``nn.Module`` contracts (forward hook, ``compute_logits``), not on the internals of a model runner.
"""

from typing import Any

import numpy as np
import torch

from teacher_cache.signals.logits import LogitsRows, reduce_logits

CapturedSequence = tuple[np.ndarray, LogitsRows]


class CaptureWorkerExtension:
    """Methods that vLLM adds to its worker (``worker_extension_cls``), called through ``collective_rpc``."""

    def install_capture(self, k: int, temperatures: list[float], chunk_rows: int) -> int:
        """Start capturing; returns the size of the vocabulary the model's head gives logits for."""
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        self._capture = _Capture(model, k, temperatures, chunk_rows)
        model.register_forward_hook(self._capture.on_forward, with_kwargs=True)
        return model.config.get_text_config().vocab_size

    def collect_captured(self) -> list[CapturedSequence]:
        """Every sequence since the last call: its token ids (int64 [S]) and its rows, on the CPU. Empty off rank 0."""
        return self._capture.take()


class _Capture:
    def __init__(self, model: Any, k: int, temperatures: list[float], chunk_rows: int) -> None:
        self._model = model
        self._k = k
        self._temperatures = temperatures
        self._chunk_rows = chunk_rows
        self._captured: list[CapturedSequence] = []

    @torch.inference_mode()
    def on_forward(self, _model: Any, _args: Any, kwargs: dict[str, Any], hidden_ND: Any) -> None:
        """Reduce the logits of one step's tokens. Each sequence starts where the position is 0."""
        ids_N, positions_N = kwargs["input_ids"], kwargs["positions"]
        next_N = ids_N.roll(-1)
        parts = []
        for hidden, next_ids in zip(hidden_ND.split(self._chunk_rows), next_N.split(self._chunk_rows), strict=True):
            logits = self._model.compute_logits(hidden)  # every rank takes part
            if logits is not None:
                parts.append(reduce_logits(logits, next_ids, self._k, self._temperatures))
        if not parts:
            return
        rows = LogitsRows(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))
        ids = ids_N.cpu().numpy().astype(np.int64)
        starts = (positions_N == 0).nonzero().flatten().tolist()
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
            self._captured.append((ids[start:stop], LogitsRows(*(column[start:stop] for column in rows))))

    def take(self) -> list[CapturedSequence]:
        captured, self._captured = self._captured, []
        return captured
