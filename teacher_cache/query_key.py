"""Capture q and k of one attention layer of a transformers model as it runs, with any kernel.

q and k pass through transformers' ``AttentionInterface``: the *one* tapped attention module gets its own copy of the
config with another attention name, whose function records q and k and then calls the original implementation. The
model's own config does not change, hence neither do masks, packing and whatever else depends on that name.

Shape letters: R rows of the batch, H attention heads, G key-value heads, L tokens, D head size.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface

from schemas.errors import UserError

NOT_IN_QUERY_KEY = ("s_aux", "position_bias")  # attention arguments that alter the rows beyond q and k


class QueryKey(NamedTuple):
    """The inputs from which attention rows are computed."""

    query_RHLD: torch.Tensor  # post-rotary, as passed to the attention function
    key_RGLD: torch.Tensor  # attention head h uses key-value head h // (H // G)
    scaling: float  # factor on q·k
    softcap: float | None  # c, for scores c · tanh(scaling · q·k / c)


def tap_query_key(attention: Any, keep: Callable[[QueryKey], None], whose: str) -> Callable[[], None]:
    """Call ``keep`` with q and k before the attention function of ``attention`` runs. Returns an undo function.

    whose: "student" or "teacher", for the error message. Raises UserError, here or in a forward pass, if q and k do
    not determine the attention rows.
    """
    config, kind = getattr(attention, "config", None), type(attention)
    files = [sys.modules[base.__module__] for base in kind.__mro__]
    modelling: Any = next((file for file in files if hasattr(file, "ALL_ATTENTION_FUNCTIONS")), None)
    if modelling is None or config is None:
        raise UserError(
            f"{whose}: {kind.__name__} does not use transformers' AttentionInterface, so its q and k cannot be "
            "captured; drop its attention rows or use a model class of transformers"
        )
    name = config._attn_implementation
    in_use = modelling.ALL_ATTENTION_FUNCTIONS.get_interface(name, getattr(modelling, "eager_attention_forward", None))

    def attend(module: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any) -> Any:
        keep(_query_key(module, query, key, options, whose))
        module.config = config  # Flash Attention's function reads its kernel's name there
        try:
            return in_use(module, query, key, *args, **options)
        finally:
            module.config = redirected

    attention.query_key_tap = attend
    redirected = copy.deepcopy(config)
    redirected._attn_implementation = f"{name}_recorded"  # keeps the prefix "flash"
    AttentionInterface.register(redirected._attn_implementation, _call_tap)
    attention.config = redirected

    def undo() -> None:
        attention.config = config
        del attention.query_key_tap

    return undo


def _call_tap(module: Any, *args: Any, **options: Any) -> Any:
    """The registered attention function, the same for all taps: it dispatches to the module's own."""
    return module.query_key_tap(module, *args, **options)


def _query_key(module: Any, query: torch.Tensor, key: torch.Tensor, options: dict[str, Any], whose: str) -> QueryKey:
    for name in NOT_IN_QUERY_KEY:
        if options.get(name) is not None:
            raise UserError(
                f"{whose}: attention rows of {type(module).__name__} cannot be captured: they depend on {name}, "
                f"not only on q and k; choose another attention layer or {whose}"
            )
    scaling = options.get("scaling")
    return QueryKey(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling, options.get("softcap"))
