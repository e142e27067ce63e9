"""The part of the vLLM engine that runs inside vLLM's worker, next to the model.

Module hooks see every scheduled token and reduce the wanted rows on the device: a pre-hook of the outer model finds the
sequences of the step; hooks of decoder layers read the residual stream; a pre-hook of one attention layer reads q and
k; a hook of the outer model applies the head in row chunks. No Python object per entry ever exists. It relies only on
``nn.Module`` hooks, ``compute_logits`` and the arguments of vLLM's ``Attention``, not on a model runner.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import numpy as np
import torch

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from teacher_cache.decoder_layers import decoder_layers
from teacher_cache.engines.chunk_rows import free_memory_bytes
from teacher_cache.engines.residual_stream import StreamProbe, stream_of
from teacher_cache.engines.step import CapturedSequence, Shares, Step, StepSequence
from teacher_cache.engines.text_only import install_placeholders
from teacher_cache.records import Request
from teacher_cache.signals.side_taps import taps_of
from teacher_cache.signals.tap import SequenceQueryKey

install_placeholders()  # before a worker that is a process of its own imports the model


class _Expected(NamedTuple):
    number: int
    request: Request


class Refusal(NamedTuple):
    """A UserError of a worker; vLLM would wrap an exception in others, and print their tracebacks."""

    message: str


def _returning_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a Refusal where ``method`` raises UserError."""

    @wraps(method)
    def call(*args: Any) -> Any:
        try:
            return method(*args)
        except UserError as error:
            return Refusal(str(error))

    return call


class CaptureWorkerExtension:
    """Methods that vLLM adds to its worker (``worker_extension_cls``), called through ``collective_rpc``."""

    @_returning_errors
    def install_capture(self, capture: dict[str, Any], chunk_rows: int) -> None:
        """Install the hooks; capture: a CaptureConfig as plain data, chunk_rows: rows per product with the head."""
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        self._capture = _Capture(model, CaptureConfig.model_validate(capture), chunk_rows)

    def free_memory(self) -> int | None:
        """Bytes that this rank can still allocate on its GPU; None on CPUs."""
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        return free_memory_bytes(next(model.parameters()).device)

    def begin_probe(self) -> None:
        """Observe the next forward pass, to locate the residual stream in the layers' outputs."""
        self._capture.begin_probe()

    @_returning_errors
    def end_probe(self) -> dict[int, torch.Tensor]:
        """Capture hidden states from now on. Returns this rank's residual stream in the observed pass, by layer."""
        return self._capture.end_probe()

    def expect(self, requests: list[Request], first: int = 0) -> None:
        """Announce sequences, numbered from ``first``; 0 forgets those announced before."""
        self._capture.expect(requests, first)

    def collect_captured(self, numbers: range) -> dict[int, CapturedSequence]:
        """Return and forget what was captured of the sequences ``numbers``."""
        return self._capture.collect(numbers)


class _Capture:
    def __init__(self, model: Any, capture: CaptureConfig, chunk_rows: int) -> None:
        self._model = model
        self._config = capture
        self._chunk_rows = chunk_rows
        self._expected: dict[bytes, list[_Expected]] = defaultdict(list)
        self._captured: dict[int, CapturedSequence] = {}
        self._step: Step | None = None  # the current one, if it has expected sequences
        self._embedded_N: torch.Tensor | None = None  # the embedding's last input
        self._ids_N = torch.empty(0, dtype=torch.int64)  # of the current step
        self._probe: StreamProbe | None = None
        embedding = _embedding(model)
        if embedding is not None:
            embedding.register_forward_pre_hook(self._before_embedding)
        model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        model.register_forward_hook(self._after_forward)
        text_config = model.config.get_text_config()
        self._num_layers, self._hidden_size = text_config.num_hidden_layers, text_config.hidden_size
        self._taps = taps_of(capture, self._num_layers)
        self._tapped_layers = sorted({number for tap in self._taps.values() for number in tap.layers})
        for number in sorted({tap.query_key_layer for tap in self._taps.values() if tap.query_key_layer is not None}):
            attention = _attention_module(decoder_layers(model, self._num_layers)[number - 1])
            attention.register_forward_pre_hook(partial(self._before_attention, number))

    def begin_probe(self) -> None:
        if self._tapped_layers:
            layers = decoder_layers(self._model, self._num_layers)
            self._probe = StreamProbe(self._model, layers, self._tapped_layers, self._hidden_size)

    def end_probe(self) -> dict[int, torch.Tensor]:
        if self._probe is None:
            return {}
        kinds, streams = self._probe.finish(len(self._ids_N))
        if _rank() == 0:  # the residual stream is the same on every rank
            layers = decoder_layers(self._model, self._num_layers)
            for number, kind in kinds.items():
                layers[number - 1].register_forward_hook(partial(self._after_layer, number, kind))
        return streams

    def expect(self, requests: list[Request], first: int) -> None:
        if first == 0:
            self._expected.clear()
            self._captured.clear()
        for number, request in enumerate(requests, start=first):
            self._expected[request.input_ids.astype(np.int64).tobytes()].append(_Expected(number, request))

    def collect(self, numbers: range) -> dict[int, CapturedSequence]:
        captured = {number: self._captured.pop(number) for number in numbers if number in self._captured}
        return captured if _world() == 1 else {number: one.detached() for number, one in captured.items()}

    def _before_embedding(self, _embedding: Any, args: Any) -> None:
        self._embedded_N = args[0]

    def _before_forward(self, _model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        """Find the sequences of this step: each starts where the position is 0.

        Multimodal classes may get embeddings instead of ids, and positions [3, N], whose rows are equal for text.
        """
        ids_N = kwargs.get("input_ids")
        ids_N = self._embedded_N if ids_N is None else ids_N
        assert ids_N is not None
        self._ids_N = ids_N
        positions_N = kwargs["positions"] if kwargs["positions"].ndim == 1 else kwargs["positions"][0]
        ids, positions = torch.stack([ids_N.long(), positions_N[: len(ids_N)].long()]).cpu().numpy()
        starts = np.flatnonzero(positions == 0).tolist()
        running = []
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
            expected = self._expected.get(ids[start:stop].tobytes())
            if expected:
                running.append(StepSequence(*expected.pop(0), start, stop))
        self._step = Step(running, self._taps, ids_N.device) if running else None

    @torch.inference_mode()
    def _after_layer(self, number: int, kind: str, _layer: Any, _args: Any, output: Any) -> None:
        if self._step is not None:
            self._step.layer(number, stream_of(output, kind))

    @torch.inference_mode()
    def _before_attention(self, number: int, attention: Any, args: Any) -> None:
        if self._step is None:
            return
        query_NHE = args[0].view(-1, attention.num_heads, attention.head_size)
        key_NGE = args[1].view(-1, attention.num_kv_heads, attention.head_size)
        softcap = getattr(attention.impl, "logits_soft_cap", None) or None
        first_head = _rank() * attention.num_heads

        def seen(one: StepSequence) -> SequenceQueryKey:
            rows = slice(one.start, one.stop)
            return SequenceQueryKey(query_NHE[rows], key_NGE[rows], attention.impl.scale, softcap, first_head)

        self._step.query_key(number, seen)

    @torch.inference_mode()
    def _after_forward(self, _model: Any, _args: Any, hidden_ND: Any) -> None:
        """Compute and reduce the logits of the step's wanted rows; everything captured leaves the device."""
        step, self._step = self._step, None
        if step is None:
            return
        if _rank() == 0:  # the final hidden state is the same on every rank
            step.final(hidden_ND)

        def compute(rows_n: torch.Tensor) -> torch.Tensor | None:
            return self._model.compute_logits(hidden_ND[rows_n])  # every rank takes part

        step.logits(self._ids_N, compute, self._config.logits, self._chunk_rows, _shares())
        self._captured.update(step.finish())


def _embedding(model: torch.nn.Module) -> torch.nn.Module | None:
    """The token embedding of the text model, if it is a vLLM module."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead):
            return module
    return None


def _attention_module(layer: torch.nn.Module) -> Any:
    from vllm.model_executor.layers.attention import Attention

    found = [module for module in layer.modules() if isinstance(module, Attention)]
    extras = [name for name in ("sinks", "alibi_slopes") for one in found if getattr(one.impl, name, None) is not None]
    if len(found) != 1 or extras:
        raise UserError(
            f"capture.attention: a {type(layer).__name__} of vLLM has {len(found)} attention modules, wanted 1"
            f"{''.join(f', with {extra}' for extra in extras)}; leave the signal out for this teacher"
        )
    return found[0]


def _rank() -> int:
    from vllm.distributed import get_tensor_model_parallel_rank

    return get_tensor_model_parallel_rank()


def _world() -> int:
    from vllm.distributed import get_tensor_model_parallel_world_size

    return get_tensor_model_parallel_world_size()


def _shares() -> Shares:
    """Every rank shares the rows where all have the logits; else rank 0, or who has them, takes all."""
    if _world() == 1:
        return Shares()
    from vllm.platforms import current_platform

    return Shares(_rank(), _world()) if current_platform.use_all_gather() else Shares()
