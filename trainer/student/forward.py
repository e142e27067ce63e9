"""Run the student up to its final hidden states; the losses apply the output head themselves.

The vocabulary is the largest dimension, so the student never materialises logits: during the forward pass its output
head only records its input, and the losses apply the head in chunks of rows (``losses/lean``). Padding is on the right
and attention is causal, so padded rows need no attention mask and keep the fastest kernels. Packed rows carry
``position_ids`` that restart at 0 for each sample; without an attention mask, transformers derives block-diagonal
attention from them. Kernels that take the samples' lengths get these, computed once a batch (``token_layout``), and
packed rows concatenated into one row without padding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from schemas.errors import UserError
from teacher_cache.attention_implementation import VARLEN
from teacher_cache.output_head import OutputHead, logit_transform
from trainer.student.token_layout import TokenLayout, token_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-3  # relative to the largest logit: our head against the model's own logits
MOVED = 1e-4  # relative to the largest hidden state: one packed sample when another one changes


def output_head(model: "PreTrainedModel") -> OutputHead:
    """Return the model's output head; it shares the parameters. Raises UserError unless it is one Linear layer.

    For a sharded model call this between forward and backward, while FSDP keeps the head's weight gathered.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise UserError(
            f"student: the output head of a {type(model).__name__} is a {type(head).__name__}, wanted a Linear layer; "
            "choose another student"
        )
    return OutputHead(head.weight, head.bias, *logit_transform(model.config.get_text_config()))


def masked_hidden(model: Any, batch: dict[str, Any], flatten: bool = False) -> torch.Tensor:
    """Return the final hidden states [N, D] at the N positions where ``batch["loss_mask"]`` is True, row-major.

    model: a PreTrainedModel, wrapped (DDP, FSDP) or not. batch: tensors of a RowBatch, with ``position_ids`` only if
    rows are packed; its ``layout``, if it has one, is what ``token_layout`` gives. flatten: as for ``token_layout``.
    """
    return hidden_and_outputs(model, batch, flatten)[0]


def hidden_and_outputs(
    model: Any, batch: dict[str, Any], flatten: bool = False, **options: Any
) -> tuple[torch.Tensor, Any]:
    """Return ``masked_hidden`` and all outputs of the forward pass, whose logits are none. options: for that pass."""
    layout: TokenLayout = batch["layout"] if "layout" in batch else token_layout(batch, flatten)
    with _without_logits(model) as given:
        outputs = model(**layout.inputs(batch), use_cache=False, **options)
    return given[0].flatten(0, 1)[layout.loss_N], outputs


def flattens(model: "PreTrainedModel") -> bool:
    """Whether this model's attention takes the samples' lengths, and packed rows concatenated into one."""
    return str(model.config._attn_implementation).startswith(("flash", VARLEN))


@contextmanager
def _without_logits(model: Any) -> Iterator[list[torch.Tensor]]:
    """Within the block the output head computes no logits and appends its input to the list that is yielded."""
    inner = getattr(model, "module", model)  # distributed wrappers
    head = inner.get_output_embeddings()
    given: list[torch.Tensor] = []

    def remember(hidden_RLD: torch.Tensor) -> torch.Tensor:
        given.append(hidden_RLD)
        return hidden_RLD[..., :1].clone()  # a copy: FSDP hooks the tensor that a view would alias

    head.forward = remember
    try:
        yield given
    finally:
        del head.forward


@torch.no_grad()
def check_head(model: "PreTrainedModel") -> None:
    """Raise UserError if ``output_head`` does not reproduce the model's own logits."""
    ids = torch.tensor([[1, 2, 3, 4]], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    batch = {"input_ids": ids, "loss_mask": torch.ones_like(ids, dtype=torch.bool)}
    hidden_ND = masked_hidden(model, batch)
    ours_ND = output_head(model).logits(hidden_ND).float()
    theirs_ND = model(input_ids=ids, use_cache=False).logits[0].float()
    model.train(was_training)
    off, largest = (ours_ND - theirs_ND).abs().max().item(), theirs_ND.abs().max().item()
    if off > max(TOLERANCE, 2 * _eps(hidden_ND, model)) * largest:  # False for NaN logits of broken weights
        raise UserError(
            f"student: a {type(model).__name__} makes its logits in an unknown way (off by {off:.3g} of "
            f"{largest:.3g}); choose another student"
        )


def _eps(hidden: torch.Tensor, model: "PreTrainedModel") -> float:
    """Machine epsilon of the dtype of the matrix products that gave ``hidden``."""
    device = hidden.device.type
    dtype = (
        torch.get_autocast_dtype(device)
        if torch.is_autocast_enabled(device)
        else model.get_output_embeddings().weight.dtype
    )
    return torch.finfo(dtype).eps


@torch.no_grad()
def check_packing(model: "PreTrainedModel", flatten: bool) -> None:
    """Raise UserError if packed samples attend to each other in this architecture (recurrent layers, own masks, …).

    Changes the first of two packed samples and compares the final hidden states of the second.
    """
    device = next(model.parameters()).device
    position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]] * 2, device=device)
    second = position_ids.new_tensor([[False] * 4 + [True] * 4] * 2).bool()
    seen = []
    was_training = model.training
    model.eval()
    for first_sample in ([1, 2, 3, 4], [4, 4, 3, 4]):
        input_ids = torch.tensor([[*first_sample, 1, 2, 3, 4]] * 2, device=device)
        batch = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": torch.ones_like(second),
            "loss_mask": second,
        }
        seen.append(masked_hidden(model, batch, flatten))
    model.train(was_training)
    moved = (seen[0].float() - seen[1].float()).abs().max().item()
    if moved > max(MOVED, 2 * _eps(seen[0], model)) * seen[0].abs().max().item():
        raise UserError(
            f"data.packing: packed samples of a {type(model).__name__} see each other (hidden states move by "
            f"{moved:.3g}); set data.packing to false for this student{_packages(model)}"
        )


def _packages(model: "PreTrainedModel") -> str:
    """What else may help: the torch code of recurrent layers has no bounds of samples."""
    config = getattr(model, "config", None)
    if "linear_attention" not in (getattr(config and config.get_text_config(), "layer_types", None) or ()):
        return ""
    return (
        ", or, on a GPU, install flash-linear-attention and causal-conv1d, which keep samples apart in its recurrent "
        f"layers, with student.attention {VARLEN} or flash_attention_2"
    )
