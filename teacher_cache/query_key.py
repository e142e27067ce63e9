"""Reading q and k of one attention layer of a transformers model while it runs with whatever kernel it uses.

q and k pass through transformers' ``AttentionInterface``: the *one* attention module that is tapped gets its own copy
of the config with another attention name, whose function notes q and k and calls the implementation in use. The
model's own config, hence masks, packing and whatever else looks at its name, does not change.

Shape letters: R rows of the batch, H heads, G key-value heads, L tokens.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface

from schemas.errors import UserError

NOT_IN_QUERY_KEY = ("s_aux", "position_bias")  # arguments of attention functions that change the rows


class QueryKey(NamedTuple):
    """What attention rows are made of."""

    query_RHLD: torch.Tensor  # post-rotary, as the attention function gets it; D: head size
    key_RGLD: torch.Tensor  # head h of q belongs to key-value head h // (H // G)
    scaling: float  # what q·k is multiplied with
    softcap: float | None  # c where scores are c · tanh(scaling · q·k / c)


def tap_query_key(attention: Any, keep: Callable[[QueryKey], None], whose: str) -> Callable[[], None]:
    """Make ``attention`` call ``keep`` before its attention function, at every pass; returns what undoes it.

    whose: "student" or "teacher", for the UserError that is raised, here or in a pass, when rows do not follow from q
    and k.
    """
    config, kind = getattr(attention, "config", None), type(attention)
    files = [sys.modules[base.__module__] for base in kind.__mro__]
    modelling: Any = next((file for file in files if hasattr(file, "ALL_ATTENTION_FUNCTIONS")), None)
    if modelling is None or config is None:
        raise UserError(
            f"{whose}: a {kind.__name__} does not call its attention through transformers' AttentionInterface, so its "
            "q and k cannot be read; leave its attention rows out or use a model class of transformers"
        )
    name = config._attn_implementation
    in_use = modelling.ALL_ATTENTION_FUNCTIONS.get_interface(name, getattr(modelling, "eager_attention_forward", None))

    def attend(module: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any) -> Any:
        keep(_query_key(module, query, key, options, whose))
        module.config = config  # Flash Attention's function looks there for the name of its kernel
        try:
            return in_use(module, query, key, *args, **options)
        finally:
            module.config = redirected

    attention.query_key_tap = attend
    redirected = copy.deepcopy(config)
    redirected._attn_implementation = f"{name}_recorded"  # still starts with "flash" where it did
    AttentionInterface.register(redirected._attn_implementation, _call_tap)
    attention.config = redirected

    def undo() -> None:
        attention.config = config
        del attention.query_key_tap

    return undo


def _call_tap(module: Any, *args: Any, **options: Any) -> Any:
    """The registered attention function: the same for all, since what is kept where belongs to the module."""
    return module.query_key_tap(module, *args, **options)


def _query_key(module: Any, query: torch.Tensor, key: torch.Tensor, options: dict[str, Any], whose: str) -> QueryKey:
    for name in NOT_IN_QUERY_KEY:
        if options.get(name) is not None:
            raise UserError(
                f"{whose}: attention rows of a {type(module).__name__} cannot be recorded: they depend on {name}, "
                f"not on q and k alone; choose another attention layer or {whose}"
            )
    scaling = options.get("scaling")
    return QueryKey(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling, options.get("softcap"))
