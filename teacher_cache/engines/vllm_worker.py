"""The part of the vLLM engine that runs inside vLLM's worker, next to the model.

Module hooks see every scheduled token and reduce the wanted rows on the device: a pre-hook of the outer model finds the
sequences of the step; hooks of decoder layers read the residual stream; a pre-hook of one attention layer reads q and
k; a hook of the outer model applies the head in row chunks. No Python object per entry ever exists. It relies only on
``nn.Module`` hooks, ``compute_logits`` and the arguments of vLLM's ``Attention``, not on a model runner.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from teacher_cache.decoder_layers import decoder_layers
from teacher_cache.engines.residual_stream import StreamProbe, stream_of
from teacher_cache.engines.text_only import install_placeholders
from teacher_cache.records import Request
from teacher_cache.signals.logits.capture import LogitsRows, reduce_logits
from teacher_cache.signals.side_taps import taps_of
from teacher_cache.signals.tap import SequenceQueryKey, Tap

install_placeholders()  # before a worker that is a process of its own imports the model

Piece = TypeVar("Piece", bound=tuple[torch.Tensor, ...])


@dataclass
class CapturedSequence:
    """What one rank captured of one sequence, on the CPU."""

    logits: LogitsRows | None = None  # None on ranks without the logits
    side: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))  # pieces of each side signal


class _Expected(NamedTuple):
    number: int
    request: Request


class _Running(NamedTuple):
    """A sequence of the current step: rows ``start`` to ``stop`` of the flat batch."""

    expected: _Expected
    start: int
    stop: int


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
        self._captured: dict[int, CapturedSequence] = defaultdict(CapturedSequence)
        self._running: list[_Running] = []
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
        return {number: self._captured.pop(number) for number in numbers if number in self._captured}

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
        ids = ids_N.cpu().numpy().astype(np.int64)
        positions_N = kwargs["positions"] if kwargs["positions"].ndim == 1 else kwargs["positions"][0]
        starts = (positions_N[: len(ids)] == 0).nonzero().flatten().tolist()
        self._running = []
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
            expected = self._expected.get(ids[start:stop].tobytes())
            if expected:
                self._running.append(_Running(expected.pop(0), start, stop))

    @torch.inference_mode()
    def _after_layer(self, number: int, kind: str, _layer: Any, _args: Any, output: Any) -> None:
        stream_ND = stream_of(output, kind)
        for (expected, start, _), name, tap in self._running_taps():
            if number in tap.layers:
                rows = _flat_rows(start, expected.request.positions(name), stream_ND.device)
                self._keep(expected, name, tap.from_layer(stream_ND[rows]))

    @torch.inference_mode()
    def _before_attention(self, number: int, attention: Any, args: Any) -> None:
        query_NHE = args[0].view(-1, attention.num_heads, attention.head_size)
        key_NGE = args[1].view(-1, attention.num_kv_heads, attention.head_size)
        softcap = getattr(attention.impl, "logits_soft_cap", None) or None
        first_head = _rank() * attention.num_heads
        for (expected, start, stop), name, tap in self._running_taps():
            if number == tap.query_key_layer:
                seen = SequenceQueryKey(
                    query_NHE[start:stop], key_NGE[start:stop], attention.impl.scale, softcap, first_head
                )
                positions_P = _flat_rows(0, expected.request.positions(name), query_NHE.device)
                self._keep(expected, name, tap.from_query_key(seen, positions_P))

    def _running_taps(self) -> Iterator[tuple[_Running, str, Tap]]:
        return ((running, name, tap) for running in self._running for name, tap in self._taps.items())

    def _keep(self, expected: _Expected, name: str, piece: Any) -> None:
        self._captured[expected.number].side[name].append(_on_cpu(piece))

    @torch.inference_mode()
    def _after_forward(self, _model: Any, _args: Any, hidden_ND: Any) -> None:
        """Compute and reduce the logits of the step's wanted rows."""
        if not self._running:
            return
        if _rank() == 0:  # the final hidden state is the same on every rank
            self._keep_final(hidden_ND)
        config, device = self._config.logits, hidden_ND.device
        rows_N = torch.cat([_flat_rows(start, one.request.logits_positions, device) for one, start, _ in self._running])
        next_N = self._ids_N.roll(-1)[rows_N]
        taps = {name: tap for name, tap in self._taps.items() if tap.reads_logits}
        inputs = {
            name: torch.from_numpy(np.concatenate([tap.row_inputs(one.request) for one, _, _ in self._running])).to(
                device
            )
            for name, tap in taps.items()
        }
        parts: list[LogitsRows] = []
        pieces: dict[str, list[Any]] = {name: [] for name in taps}
        for start in range(0, len(rows_N), self._chunk_rows):
            chunk = slice(start, start + self._chunk_rows)
            logits = self._model.compute_logits(hidden_ND[rows_N[chunk]])  # every rank takes part
            if logits is None:
                continue
            parts.append(reduce_logits(logits, next_N[chunk], config.k, config.temperatures))
            for name, tap in taps.items():
                pieces[name].append(tap.from_logits(logits, parts[-1].ids_NK, inputs[name][chunk]))
        if parts:
            self._keep_rows(_joined(parts), {name: _joined(chunks) for name, chunks in pieces.items()})

    def _keep_rows(self, logits: LogitsRows, pieces: dict[str, Any]) -> None:
        """Split the step's rows by sequence."""
        first = 0
        for expected, _, _ in self._running:
            last = first + len(expected.request.logits_positions)
            captured = self._captured[expected.number]
            captured.logits = LogitsRows(*(column[first:last] for column in logits))
            for name, piece in pieces.items():
                captured.side[name].append(type(piece)(*(column[first:last] for column in piece)))
            first = last

    def _keep_final(self, hidden_ND: torch.Tensor) -> None:
        for (expected, start, _), name, tap in self._running_taps():
            if tap.reads_final:
                rows = _flat_rows(start, expected.request.positions(name), hidden_ND.device)
                self._keep(expected, name, tap.from_final(hidden_ND[rows]))


def _flat_rows(start: int, positions: np.ndarray, device: torch.device) -> torch.Tensor:
    """Rows of the flat batch, int64, at ``positions`` of the sequence that begins at row ``start``."""
    return torch.from_numpy(start + positions.astype(np.int64)).to(device)


def _on_cpu(piece: Any) -> Any:
    """Move the tensors of a NamedTuple of tensors and arrays to the CPU."""
    return type(piece)(*(part.cpu() if isinstance(part, torch.Tensor) else part for part in piece))


def _joined(parts: list[Piece]) -> Piece:
    """Concatenate NamedTuples of tensors along their rows, on the CPU."""
    return type(parts[0])(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


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
