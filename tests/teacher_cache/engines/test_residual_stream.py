"""The residual stream in a layer's output, found in small models with the layouts of vLLM's."""

from typing import Any

import pytest
import torch

from schemas.errors import UserError
from teacher_cache.engines.residual_stream import StreamProbe, check_ranks, stream_of

D, N = 16, 5


class RMSNorm(torch.nn.Module):
    """Like vLLM's: adds the residual, if given, before the norm, and returns the sum too."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        stream = x if residual is None else x + residual
        normed = stream / stream.square().mean(dim=-1, keepdim=True).sqrt()
        return normed if residual is None else (normed, stream)


class LayerNormGivingBack(RMSNorm):
    """Like Cohere's in vLLM: returns the residual unchanged, without adding it."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        return super().forward(x), residual


class NormAfterAllReduce(RMSNorm):
    """Like a norm that does the all-reduce first: its input is not yet the residual stream."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        return super().forward(x if residual is None else x + torch.arange(D), residual)


class Layer(torch.nn.Module):
    """Takes and returns (hidden, residual), whose sum is the residual stream."""

    def __init__(self, norm: type[torch.nn.Module]) -> None:
        super().__init__()
        self.norm = norm()
        self.block = torch.nn.Linear(D, D)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> Any:
        normed, residual = (self.norm(hidden), hidden) if residual is None else self.norm(hidden, residual)
        return self.block(normed), residual


class ParallelLayer(Layer):
    """Returns (stream, residual): the residual is already part of the first value."""

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> Any:
        del residual
        normed, residual = self.norm(hidden, hidden)
        return self.block(normed) + hidden, residual


class PlainLayer(Layer):
    """Takes and returns the residual stream, with a batch dimension."""

    def forward(self, hidden: torch.Tensor, residual: None) -> Any:
        del residual
        return hidden + self.block(self.norm(hidden))


class PostNormLayer(Layer):
    """Like OLMo-2: the norm is applied to the block's output."""

    def forward(self, hidden: torch.Tensor, residual: None) -> Any:
        del residual
        return hidden + self.norm(self.block(hidden))


class ThreeValues(PlainLayer):
    def forward(self, hidden: torch.Tensor, residual: None) -> Any:
        return super().forward(hidden, residual), hidden, hidden


class Model(torch.nn.Module):
    def __init__(self, layer: type[Layer], norm: type[torch.nn.Module] = RMSNorm) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layer(norm) for _ in range(3))
        self.norm = norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = None
        for layer in self.layers:
            output = layer(x, residual)
            x, residual = output[:2] if isinstance(output, tuple) else (output, None)
        return self.norm(x) if residual is None else self.norm(x, residual)[0]


def probe(model: Model, x: torch.Tensor) -> tuple[dict[int, str], dict[int, torch.Tensor]]:
    watching = StreamProbe(model, model.layers, [1, 3])
    model(x)
    return watching.finish()


@pytest.mark.parametrize(
    ("layer", "norm", "kind"),
    [
        (Layer, RMSNorm, "sum"),
        (ParallelLayer, LayerNormGivingBack, "first"),
        (PlainLayer, RMSNorm, "first"),
        (PostNormLayer, RMSNorm, "first"),
    ],
)
def test_the_stream_is_found_in_every_layout(layer: type[Layer], norm: type[torch.nn.Module], kind: str) -> None:
    torch.manual_seed(0)
    model = Model(layer, norm)
    x = torch.randn(1, N, D) if kind == "first" and norm is RMSNorm else torch.randn(N, D)
    outputs: list[Any] = []
    model.layers[0].register_forward_hook(lambda _layer, _args, output: outputs.append(output))
    kinds, streams = probe(model, x)
    assert kinds == {1: kind, 3: kind}
    first = model.layers[0]
    normed = first.norm(x, x)[0] if norm is LayerNormGivingBack else first.norm(x)
    block = first.norm(first.block(x)) if layer is PostNormLayer else first.block(normed)
    torch.testing.assert_close(streams[1], (x + block).reshape(N, D))
    torch.testing.assert_close(stream_of(outputs[0], kinds[1]), streams[1])
    assert streams[3].shape == (N, D)


def test_an_output_that_the_next_norm_does_not_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"capture\.hidden: vLLM's layer 1 \(Layer\): its output is not what the next"):
        probe(Model(Layer, NormAfterAllReduce), torch.randn(N, D))


def test_outputs_with_three_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"capture\.hidden: a ThreeValues of vLLM gives 3 values"):
        probe(Model(ThreeValues), torch.randn(N, D))


def test_ranks_with_partial_sums_are_refused() -> None:
    streams = torch.randn(2, N, D)
    check_ranks([{1: streams[0], 2: streams[1]}, {1: streams[0] + 1e-4, 2: streams[1]}])
    with pytest.raises(UserError, match=r"capture\.hidden: layer 2: .* ranks 0 and 1 differ by"):
        check_ranks([{1: streams[0], 2: streams[1]}, {1: streams[0], 2: streams[0]}])
