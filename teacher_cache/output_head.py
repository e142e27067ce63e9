"""A model's output head: from the final hidden state (after the last norm) to logits.

After the matrix product, Granite divides the logits, Cohere multiplies them, and Gemma caps them with a tanh. Used for
the student's head, and for the teacher's head that a cache with final hidden states contains.
"""

from typing import Any, NamedTuple

import torch


class OutputHead(NamedTuple):
    """logits = cap(scale · (hidden Wᵀ + bias)) with cap(x) = softcap · tanh(x / softcap)."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def to(self, device: torch.device) -> "OutputHead":
        """Copy the head to ``device``."""
        bias_V = None if self.bias_V is None else self.bias_V.to(device)
        return self._replace(weight_VD=self.weight_VD.to(device), bias_V=bias_V)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] of final hidden states [N, D]: float32 (float64 for a float64 head), a new tensor.

        The product is computed in the weight's dtype, everything after it in the result's.
        """
        product_NV = hidden_ND.to(self.weight_VD.dtype) @ self.weight_VD.T
        logits_NV = product_NV.to(torch.promote_types(product_NV.dtype, torch.float32))
        if self.bias_V is not None:
            logits_NV = logits_NV.add_(self.bias_V)
        if self.scale != 1.0:
            logits_NV = logits_NV.mul_(self.scale)
        if self.softcap is not None:
            logits_NV = logits_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_NV


def rebuilt_error(head: OutputHead, final_PD: torch.Tensor, best_P: torch.Tensor, logprob_P: torch.Tensor) -> float:
    """Mean |Δ log p|, nats, of each row's most likely token: rebuilt from final_PD [P, D] against stored.

    best_P: its id, [P]; logprob_P: its stored log-probability at temperature 1, [P].
    """
    log_p_PV = head.logits(final_PD.to(head.weight_VD.device)).log_softmax(dim=1)
    rebuilt_P = log_p_PV.gather(1, best_P.to(log_p_PV.device)[:, None].long()).squeeze(1)
    return (rebuilt_P.cpu() - logprob_P).abs().mean().item()


def logit_transform(text_config: Any) -> tuple[float, float | None]:
    """Scale and soft cap of the logits, from the keys that transformers' configurations use for them."""
    scale = float(getattr(text_config, "logit_scale", None) or 1.0)
    scale *= float(getattr(text_config, "output_multiplier", None) or 1.0)
    scale /= float(getattr(text_config, "logits_scaling", None) or 1.0)
    names = ("final_logit_softcapping", "logits_soft_cap")
    softcap = next((getattr(text_config, name) for name in names if getattr(text_config, name, None)), None)
    return scale, None if softcap is None else float(softcap)
