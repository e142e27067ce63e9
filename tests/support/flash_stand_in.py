"""Flash Attention's kernels written with SDPA, for machines without the package; transformers' own code runs on top."""

import itertools
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import modeling_flash_attention_utils as utils
from transformers import modeling_utils

LOADED = ("_flash_fn", "_flash_varlen_fn", "_pad_fn", "_unpad_fn", "_process_flash_kwargs_fn")


class FlashStandIn:
    """Call it to replace the kernels in this process; ``undo`` puts the real ones back. Can be pickled.

    any_dtype: also take float32, which the kernels refuse. ``names``: the implementations that were asked for.
    ``lengths``: types of ``max_seqlen_q`` that were passed.
    """

    def __init__(self, any_dtype: bool = False) -> None:
        self.any_dtype = any_dtype
        self.names: list[str] = []
        self.lengths: set[str] = set()
        self._replaced: list[tuple[Any, str, Any]] = []

    def __call__(self) -> None:
        self._replace(utils, "_lazy_imports", self._kernels)
        self._replace(utils, "_loaded_implementation", None)
        for name in LOADED:
            self._replace(utils, name, None)
        self._replace(modeling_utils.PreTrainedModel, "_flash_attn_can_dispatch", lambda *args, **options: True)

    def undo(self) -> None:
        while self._replaced:
            owner, name, value = self._replaced.pop()
            setattr(owner, name, value)

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        self._replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def _kernels(self, name: str, *args: Any, **options: Any) -> Any:
        self.names.append(name)
        return self.flash, self.flash_varlen, None, utils._pad_input, utils._unpad_input

    def flash(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0,
        softmax_scale: float | None = None, causal: bool = False, **_: Any,
    ) -> torch.Tensor:  # fmt: skip
        if not self.any_dtype and q.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        attended = scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        return attended.transpose(1, 2)

    def flash_varlen(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
        max_seqlen_q: Any, max_seqlen_k: Any, **options: Any,
    ) -> torch.Tensor:  # fmt: skip
        self.lengths.add(type(max_seqlen_q).__name__)
        parts = [slice(a, b) for a, b in itertools.pairwise(cu_seqlens_q.tolist())]
        return torch.cat([self.flash(q[None, p], k[None, p], v[None, p], **options)[0] for p in parts])
