"""The residual stream in a layer's output, found in small models with the layouts of vLLM's."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
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
    """Like Kimi-K3: returns more than a residual beside the hidden state."""

    def forward(self, hidden: torch.Tensor, residual: None) -> Any:
        return super().forward(hidden, residual), hidden, hidden


class FourStreams(PlainLayer):
    """Like Gemma-3n: returns [4, N, D]."""

    def forward(self, hidden: torch.Tensor, residual: None) -> Any:
        stream = super().forward(hidden[:1] if hidden.ndim == 3 else hidden, residual)
        return stream.expand(4, -1, -1)


class WideStream(PlainLayer):
    """Like DeepSeek-V4: returns several streams side by side, [N, 4 · D]."""

    def forward(self, hidden: torch.Tensor, residual: None) -> Any:
        return super().forward(hidden[:, :D], residual).repeat(1, 4)


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


def probe(model: Model, x: torch.Tensor, num_tokens: int = N) -> tuple[dict[int, str], dict[int, torch.Tensor]]:
    watching = StreamProbe(model, model.layers, [1, 3], D)
    model(x)
    return watching.finish(num_tokens)


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


@pytest.mark.parametrize(
    ("layer", "returned"),
    [
        (ThreeValues, r"\[\[5, 16\], \[5, 16\], \[5, 16\]\]"),
        (FourStreams, r"\[\[4, 5, 16\]\]"),
        (WideStream, r"\[\[5, 64\]\]"),
    ],
)
def test_outputs_of_other_arity_or_shape_are_refused(layer: type[Layer], returned: str) -> None:
    with pytest.raises(
        UserError, match=rf"capture\.hidden: layer 1: a {layer.__name__} of vLLM returns {returned}, wanted one or two"
    ):
        probe(Model(layer), torch.randn(N, D))


def test_shares_of_the_tokens_are_refused() -> None:
    with pytest.raises(UserError, match=r"capture\.hidden: layer 1: a Layer of vLLM returns 5 of 10 tokens; leave"):
        probe(Model(Layer), torch.randn(N, D), num_tokens=2 * N)


def test_ranks_with_partial_sums_are_refused() -> None:
    """Even if the partial sums are small beside the residual stream, as in late layers."""
    streams = torch.randn(2, N, D)
    check_ranks([{1: streams[0], 2: streams[1]}, {1: streams[0] + 1e-4, 2: streams[1]}])
    with pytest.raises(UserError, match=r"capture\.hidden: layer 2: .* ranks 0 and 1 differ by"):
        check_ranks([{1: streams[0], 2: streams[1]}, {1: streams[0], 2: streams[1] * 1.002}])


class DeferringNorm(RMSNorm):
    """Like MiniMax-M3's and DeepSeek-V3.2's in vLLM: does the all-reduce that the layer before it left out."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is not None:
            x = x.clone()
            torch.distributed.all_reduce(x)
        return super().forward(x, residual)


class DeferringLayer(Layer):
    """Returns this rank's part of the block's output; ``scale``: how large that output is beside the residual."""

    scale = 1.0

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> Any:
        output, residual = super().forward(hidden, residual)
        return self.scale * (0.4, 0.6)[torch.distributed.get_rank()] * output, residual


@torch.no_grad()
def probe_on_rank(rank: int, rendezvous: str) -> list[dict[int, torch.Tensor] | str]:
    """Streams, or the error, with large parts in float32, and with small ones in bfloat16."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found: list[dict[int, torch.Tensor] | str] = []
    for DeferringLayer.scale, dtype in ((1.0, torch.float32), (0.05, torch.bfloat16)):
        torch.manual_seed(0)
        try:
            found.append(probe(Model(DeferringLayer, DeferringNorm).to(dtype), torch.randn(N, D).to(dtype))[1])
        except UserError as error:
            found.append(str(error))
    torch.distributed.destroy_process_group()
    return found


def test_deferred_all_reduces_are_refused_on_two_ranks(tmp_path: Path) -> None:
    """Large parts are found by the norm, small ones by comparing the ranks."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(probe_on_rank, rank, str(tmp_path / "rendezvous")) for rank in range(2)]
        large, small = zip(*(job.result(timeout=120) for job in jobs), strict=True)
    assert all("its output is not what the next norm reads" in error for error in large)
    assert all(isinstance(streams, dict) for streams in small), small
    with pytest.raises(UserError, match=r"capture\.hidden: layer 1: .* ranks 0 and 1 differ by 0\.00"):
        check_ranks(list(small))
