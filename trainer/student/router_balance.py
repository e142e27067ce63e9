"""Router balance loss of Mixture-of-Experts students: without it training lets a few experts take most tokens.

The formula is the architecture's own (``load_balancing_loss_func`` of its transformers module; Fedus et al. 2021,
arXiv:2101.03961, eq. 4-6), its weight ``router_aux_loss_coef`` of the student's configuration, as in training on text.
Padding is left out. Trade-off: token shares and probabilities are those of a micro-batch, as is usual; the loss is not
linear in them, so it depends a little on how a step is cut into micro-batches.
"""

import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from schemas.errors import UserError

logger = logging.getLogger(__name__)
NAME = "router_balance"
ARGUMENTS = ("gate_logits", "num_experts", "top_k", "attention_mask")  # of load_balancing_loss_func
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # of configurations


@dataclass(frozen=True)
class RouterBalance:
    """How one architecture computes the loss."""

    weight: float
    function: Callable[..., torch.Tensor]
    experts: int
    experts_per_token: int

    def total(self, outputs: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Return the loss of a micro-batch times its tokens, a scalar.

        outputs: of a forward pass with ``output_router_logits``. batch: with the ``layout`` that the pass had. Raises
        UserError if the outputs have no router logits.
        """
        if not outputs.router_logits:
            raise UserError(
                "student: its router_aux_loss_coef is not 0, and it returns no router logits; set "
                "router_aux_loss_coef to 0 in its config.json to train it without the router balance loss"
            )
        real_T = batch["attention_mask"].flatten()
        kept_T = batch["layout"].kept_T
        seen_T = real_T if kept_T is None else torch.ones_like(kept_T, dtype=torch.bool)
        sizes = {"num_experts": self.experts, "top_k": self.experts_per_token}
        loss = self.function(outputs.router_logits, **sizes, attention_mask=seen_T)
        return loss * real_T.sum()


def router_balance(student: PreTrainedModel) -> RouterBalance | None:
    """Return the student's router balance loss; None if it has no experts, its weight is 0, or no such loss is known.

    Logs a warning, by name, in the last case.
    """
    config = student.config.get_text_config()
    if max((getattr(config, name, None) or 0 for name in EXPERTS), default=0) < 2:
        return None
    weight = getattr(config, "router_aux_loss_coef", None)
    if weight == 0:
        return None
    modules = [sys.modules[base.__module__] for base in type(student).__mro__]
    function = next((found for module in modules if (found := getattr(module, "load_balancing_loss_func", None))), None)
    sizes = [getattr(student, name, None) for name in ("num_experts", "num_experts_per_tok")]
    known = function is not None and tuple(inspect.signature(function).parameters) == ARGUMENTS
    if weight is None or not known or None in sizes:
        logger.warning(
            "student: transformers has no router balance loss for a %s; trained without one, some of its experts may "
            "fall out of use",
            type(student).__name__,
        )
        return None
    assert function is not None
    return RouterBalance(float(weight), function, *sizes)  # type: ignore[arg-type]
