"""Attention over packed samples with torch's own Flash Attention kernels: ``student.attention: varlen``.

``torch.nn.attention.varlen.varlen_attn`` takes the tokens of all samples in one row and the samples' bounds. It needs
no mask, which for SDPA is [L, L], and no package beside torch. Bounds come once a batch, with the longest length as a
number (``token_layout.py``), so no layer waits for the device. Semantics are those of Flash Attention 2 without soft
caps. The kernels run on CUDA in 16-bit floats; elsewhere a reference of the same signature runs SDPA for each sample.

Importing this module registers the implementation with transformers. It has no mask function there, so models make no
mask for it, and pass sliding windows as a number.

Shape letters: R rows, L tokens, H attention heads, G key-value heads, D head size, T = R · L, S samples.
"""

import itertools
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from schemas.errors import UserError
from teacher_cache.attention_implementation import VARLEN

HEAD_MULTIPLE = 8  # the kernels' head sizes
UNSUPPORTED = ("s_aux", "softcap", "position_bias")  # arguments of attention functions that varlen_attn has not


def attend(
    module: torch.nn.Module,
    query_RHLD: torch.Tensor,
    key_RGLD: torch.Tensor,
    value_RGLD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention, [R, L, H, D], as transformers calls it.

    cu_seq_lens_q: int32 [S + 1], the first position of each sample in the T tokens of all rows, and T; max_length_q:
    tokens of the longest one; default: each row is one sample. sliding_window: keys that a query sees, its own
    included. Raises UserError for what the kernels have not.
    """
    _check(module, attention_mask, dropout, options)
    rows, _, length, size = query_RHLD.shape
    value_size = value_RGLD.shape[-1]
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=query_RHLD.device)
        max_length_q = length
    parts = [_flat(part) for part in (query_RHLD, key_RGLD, value_RGLD)]
    widest = -(-max(size, value_size) // HEAD_MULTIPLE) * HEAD_MULTIPLE
    query, key, value = (
        part if part.shape[-1] == widest else pad(part, (0, widest - part.shape[-1])) for part in parts
    )
    kernel: Any = varlen_attn if query.device.type == "cuda" else varlen_reference
    attended_THD: torch.Tensor = kernel(
        query,
        key,
        value,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=size**-0.5 if scaling is None else scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended_THD[..., :value_size].unflatten(0, (rows, length)), None


def _flat(part_RHLD: torch.Tensor) -> torch.Tensor:
    """[T, H, D], in autocast's dtype where it is on: norms of q and k return float32."""
    device = part_RHLD.device.type
    if torch.is_autocast_enabled(device):
        part_RHLD = part_RHLD.to(torch.get_autocast_dtype(device))
    return part_RHLD.transpose(1, 2).flatten(0, 1)


def _check(
    module: torch.nn.Module, attention_mask: torch.Tensor | None, dropout: float, options: dict[str, Any]
) -> None:
    wrong = next((name for name in UNSUPPORTED if options.get(name) is not None), None)
    wrong = wrong or ("an attention mask" if attention_mask is not None else None)
    wrong = wrong or ("attention dropout" if dropout else None)
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    wrong = wrong or (None if causal else "attention that is not causal")
    if wrong is not None:
        raise UserError(
            f"student.attention: {VARLEN} does not support {wrong}, which {type(module).__name__} has; set it to sdpa "
            "or eager"
        )


@torch.compiler.disable
def varlen_reference(
    query_THD: torch.Tensor,
    key_TGD: torch.Tensor,
    value_TGD: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, 0),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What ``varlen_attn`` computes with ``window_size`` (W, 0): SDPA for each sample, on any device, in any dtype.

    W: keys before its own that a query sees; -1: all.
    """
    before, _ = window_size
    parts = []
    for start, stop in itertools.pairwise(cu_seq_q.tolist()):
        query, key, value = (part[start:stop].transpose(0, 1)[None] for part in (query_THD, key_TGD, value_TGD))
        mask = None
        if 0 <= before < stop - start - 1:
            place = torch.arange(stop - start, device=query.device)
            distance = place[:, None] - place
            mask = (distance >= 0) & (distance <= before)
        attended = scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=enable_gqa
        )
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


AttentionInterface.register(VARLEN, attend)
