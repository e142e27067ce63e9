"""A decoder with random weights in the form that vLLM runs one, for machines without vLLM.

Flat rows [N, D] of all sequences of a step, layers that give (hidden, residual), norms that add them, and attention
modules that are given q, k and v. The capture hooks of the vLLM engine are installed on it as they are on vLLM's own.
What is missing is what the capture does not touch: rotary embeddings, a paged key-value cache, a scheduler.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.gpu_check.device_size import DecoderShape

ATTENTION = "vllm.model_executor.layers.attention"
EMBEDDING = "vllm.model_executor.layers.vocab_parallel_embedding"
PACKAGES = ("vllm", "vllm.distributed", "vllm.model_executor", "vllm.model_executor.layers", ATTENTION, EMBEDDING)


class StandInEmbedding(nn.Embedding):
    """The token embedding."""


class StandInHead(StandInEmbedding):
    """The output head, which vLLM counts among the embeddings."""


class StandInNorm(nn.Module):
    """RMS norm of the sum of its two inputs, which it also gives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden_ND: torch.Tensor, residual_ND: torch.Tensor | None = None) -> Any:
        """The normalised rows, or these and the sum."""
        sum_ND = hidden_ND if residual_ND is None else hidden_ND + residual_ND
        normed_ND = functional.rms_norm(sum_ND, self.weight.shape, self.weight)
        return normed_ND if residual_ND is None else (normed_ND, sum_ND)


class StandInAttention(nn.Module):
    """Causal attention within sequences of equal length."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_size = shape.attention_heads, shape.key_value_heads, shape.head_dim
        self.impl = SimpleNamespace(scale=shape.head_dim**-0.5, logits_soft_cap=None)
        self.sequence_tokens = 1

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """From flat q [N, H · E], k and v [N, G · E] to [N, H · E]."""
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        query, key, value = (
            flat.view(-1, self.sequence_tokens, count, self.head_size).transpose(1, 2)
            for flat, count in zip((query, key, value), heads, strict=True)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return mixed.transpose(1, 2).reshape(-1, self.num_heads * self.head_size)


class StandInLayer(nn.Module):
    """A decoder layer of the Llama type."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        query, key = shape.attention_heads * shape.head_dim, shape.key_value_heads * shape.head_dim
        self.widths = [query, key, key]
        self.input_layernorm = StandInNorm(shape.width)
        self.qkv = nn.Linear(shape.width, sum(self.widths), bias=False)
        self.attn = StandInAttention(shape)
        self.out = nn.Linear(query, shape.width, bias=False)
        self.post_attention_layernorm = StandInNorm(shape.width)
        self.gate_up = nn.Linear(shape.width, 2 * shape.mlp_width, bias=False)
        self.down = nn.Linear(shape.mlp_width, shape.width, bias=False)

    def forward(self, hidden_ND: torch.Tensor, residual_ND: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The output of the MLP and the residual, whose sum is the stream."""
        if residual_ND is None:
            residual_ND, hidden_ND = hidden_ND, self.input_layernorm(hidden_ND)
        else:
            hidden_ND, residual_ND = self.input_layernorm(hidden_ND, residual_ND)
        hidden_ND = self.out(self.attn(*self.qkv(hidden_ND).split(self.widths, dim=-1)))
        hidden_ND, residual_ND = self.post_attention_layernorm(hidden_ND, residual_ND)
        gate, up = self.gate_up(hidden_ND).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up), residual_ND


class StandInModel(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.embed_tokens = StandInEmbedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(StandInLayer(shape) for _ in range(shape.layers))
        self.norm = StandInNorm(shape.width)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The final hidden states, [N, D]."""
        hidden_ND, residual_ND = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden_ND, residual_ND = layer(hidden_ND, residual_ND)
        return self.norm(hidden_ND, residual_ND)[0]


class StandInDecoder(nn.Module):
    """The outer model, with its head."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        text_config = SimpleNamespace(num_hidden_layers=shape.layers, hidden_size=shape.width)
        self.config = SimpleNamespace(get_text_config=lambda: text_config)
        self.model = StandInModel(shape)
        self.lm_head = StandInHead(shape.vocabulary, shape.width)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The final hidden states of a step's tokens, [N, D]. ``positions`` are for the hooks."""
        del positions
        return self.model(input_ids)

    def compute_logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits [N, V]."""
        return hidden_ND @ self.lm_head.weight.T

    def set_sequence_tokens(self, tokens: int) -> None:
        """The length of all sequences of the next steps."""
        for module in self.modules():
            if isinstance(module, StandInAttention):
                module.sequence_tokens = tokens

    def remove_hooks(self) -> None:
        """Take off everything that was installed."""
        for module in self.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                hooks.clear()


def make_decoder(shape: DecoderShape, device: str, dtype: torch.dtype) -> StandInDecoder:
    """A decoder with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device("meta"):
        decoder = StandInDecoder(shape)
    decoder = decoder.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for name, weight in decoder.named_parameters():
        if "norm" in name:
            weight.fill_(1.0)
        else:
            weight.normal_(std=0.02)
    return decoder


@contextmanager
def as_vllm() -> Iterator[None]:
    """Let the capture hooks find the stand-in's modules where they look for vLLM's."""
    modules = {name: ModuleType(name) for name in PACKAGES}
    modules["vllm.distributed"].get_tensor_model_parallel_rank = lambda: 0  # type: ignore[attr-defined]
    modules["vllm.distributed"].get_tensor_model_parallel_world_size = lambda: 1  # type: ignore[attr-defined]
    modules[ATTENTION].Attention = StandInAttention  # type: ignore[attr-defined]
    modules[EMBEDDING].VocabParallelEmbedding = StandInEmbedding  # type: ignore[attr-defined]
    modules[EMBEDDING].ParallelLMHead = StandInHead  # type: ignore[attr-defined]
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:  # other modules that were imported meanwhile stay: some of torch's cannot be imported twice
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)
