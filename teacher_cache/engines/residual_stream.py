"""Find the residual stream in the output of a vLLM decoder layer.

Most layers return (hidden, residual), whose sum is the residual stream; some return the stream itself, alone or with a
residual that is already part of it. The output alone does not tell which. The module that reads it does: the next norm
(of the next layer, or the final one), applied again to the right candidate, must reproduce its output. One short pass,
the probe, decides this for every captured layer.
"""

from typing import Any

import torch

from schemas.errors import UserError

TOLERANCE = {torch.float32: 1e-3}  # relative error of the norm's output
HALF_TOLERANCE = 0.02  # in 16-bit types: the sum is rounded before the norm here, after it in fused kernels
RANK_TOLERANCE = 1e-3  # relative; an all-reduce gives every rank the same bits, or nearly

SUM, FIRST = "sum", "first"


def stream_of(output: Any, kind: str) -> torch.Tensor:
    """The residual stream, [N, D], in a layer's output; kind: SUM or FIRST, as ``StreamProbe`` found."""
    stream = output[0] + output[1] if kind == SUM else _first(output)
    return stream.flatten(0, -2)  # models of vLLM's transformers backend have a batch dimension of 1


class StreamProbe:
    """Finds, in one forward pass, the residual stream in the outputs of chosen layers."""

    def __init__(
        self, model: torch.nn.Module, layers: torch.nn.ModuleList, numbers: list[int], hidden_size: int
    ) -> None:
        """Hook the layers ``numbers`` (counted from 1), and the modules that read their outputs."""
        self._hidden_size = hidden_size
        self._error: UserError | None = None
        self._streams: dict[int, torch.Tensor] = {}
        self._kinds: dict[int, str] = {}
        self._candidates: dict[int, dict[str, torch.Tensor]] = {}
        self._layer_name = type(layers[0]).__name__
        self._numbers = numbers
        self._handles: list[Any] = []
        parent = next(module for module in model.modules() if any(child is layers for child in module.children()))
        for number in numbers:
            reader = layers[number] if number < len(layers) else parent
            self._handles.append(layers[number - 1].register_forward_hook(self._after_layer(number)))
            if reader is not parent:
                self._handles.append(reader.register_forward_pre_hook(self._before_reader(number), with_kwargs=True))
            for child in reader.children():
                if "Norm" in type(child).__name__:
                    self._handles.append(child.register_forward_hook(self._after_norm(number)))

    def _after_layer(self, number: int) -> Any:
        def hook(_layer: Any, _args: Any, output: Any) -> None:
            parts = [part for part in output if part is not None] if isinstance(output, tuple) else [output]
            if len(parts) not in (1, 2) or not all(_is_stream(part, self._hidden_size) for part in parts):
                shapes = [list(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__ for part in parts]
                self._error = self._error or UserError(  # raised by ``finish``: here it would end the engine
                    f"capture.hidden: layer {number}: a {self._layer_name} of vLLM returns {shapes}, wanted one or two "
                    f"tensors [tokens, {self._hidden_size}]; leave the signal out for this teacher"
                )
                return
            self._candidates[number] = {FIRST: parts[0].clone()}
            if len(parts) == 2:
                self._candidates[number][SUM] = parts[0] + parts[1]

        return hook

    def _before_reader(self, number: int) -> Any:
        def hook(_layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
            candidates = self._candidates.get(number, {})
            given = [value for value in (*args, *kwargs.values()) if _is_stream(value, self._hidden_size)]
            if len(candidates) == 1 and any(torch.equal(value, candidates[FIRST]) for value in given):
                self._settle(number, FIRST)

        return hook

    def _after_norm(self, number: int) -> Any:
        def hook(norm: Any, _args: Any, output: Any) -> None:
            if number in self._kinds or number not in self._candidates:
                return
            given = _first(output)
            errors = {}
            for kind, candidate in self._candidates[number].items():
                again = _first(norm.forward(candidate.clone()))
                errors[kind] = ((again - given).float().norm() / given.float().norm()).item()
            best = min(errors, key=errors.__getitem__)
            if errors[best] <= TOLERANCE.get(given.dtype, HALF_TOLERANCE):
                self._settle(number, best)
            else:
                self._candidates.pop(number)  # only the first norm reads the layer's output

        return hook

    def _settle(self, number: int, kind: str) -> None:
        self._kinds[number] = kind
        self._streams[number] = self._candidates[number][kind]

    def finish(self, num_tokens: int) -> tuple[dict[int, str], dict[int, torch.Tensor]]:
        """Kind (SUM or FIRST) and residual stream, float32 [N, D], by layer. Raises UserError if one is unknown."""
        for handle in self._handles:
            handle.remove()
        if self._error is not None:
            raise self._error
        unknown = [number for number in self._numbers if number not in self._kinds]
        if unknown:
            raise UserError(
                f"capture.hidden: vLLM's layer {unknown[0]} ({self._layer_name}): its output is not what the next "
                "norm reads, so it cannot be stored as the residual stream; leave the signal out, or set engine.kind: "
                "transformers"
            )
        streams = {n: stream.flatten(0, -2).float().cpu() for n, stream in self._streams.items()}
        for number, stream in streams.items():
            if len(stream) != num_tokens:  # sequence parallelism gives each rank its share
                raise UserError(
                    f"capture.hidden: layer {number}: a {self._layer_name} of vLLM returns {len(stream)} of "
                    f"{num_tokens} tokens; leave the signal out, or set engine.tensor_parallel: 1"
                )
        return self._kinds, streams


def _is_stream(value: Any, hidden_size: int) -> bool:
    """Whether it is a float tensor [N, D] or [1, N, D]."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return False
    return value.shape[-1] == hidden_size and (value.ndim == 2 or (value.ndim == 3 and len(value) == 1))


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def check_ranks(streams: list[dict[int, torch.Tensor]]) -> None:
    """Raise UserError if a layer's residual stream differs between tensor-parallel ranks.

    It does in models that defer the all-reduce into the next norm: each rank then holds a partial sum.
    """
    first, *others = streams
    for number, wanted in first.items():
        for rank, other in enumerate(others, start=1):
            error = (other[number] - wanted).norm() / wanted.norm()
            if not error <= RANK_TOLERANCE:
                raise UserError(
                    f"capture.hidden: layer {number}: the residual streams of tensor-parallel ranks 0 and {rank} "
                    f"differ by {error:.2g} (relative); leave the signal out, or set engine.tensor_parallel: 1"
                )
