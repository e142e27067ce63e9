"""What is read off the student: its logits at the rows that count.

The vocabulary is the largest dimension, so logits are asked for only at columns where some row of the batch counts.
Padding is on the right and attention is causal, so padded rows need no mask at all and keep the fastest kernels.
Packed rows carry ``position_ids`` that restart at 0 for each sample; transformers turns them into block-diagonal
attention when no attention mask is passed. Its Flash Attention path does so for a single row only, so there the batch
is flattened into one row first, without its padding.
"""

import inspect

import torch

from schemas.errors import UserError


def accepts_logits_to_keep(model: torch.nn.Module) -> bool:
    """Whether ``model.forward`` can leave out logits that are not needed; ask the model before it is wrapped."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def masked_logits(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], keep_only_masked: bool, flatten: bool = False
) -> torch.Tensor:
    """The student's logits [N, V] at the N positions where ``batch["loss_mask"]`` holds, in row-major order.

    batch: tensors of a RowBatch; ``position_ids`` present if and only if rows are packed. keep_only_masked: see
    ``accepts_logits_to_keep``. flatten: lay packed rows out as one row, for Flash Attention.
    """
    mask_RL = batch["loss_mask"]
    inputs = {"input_ids": batch["input_ids"]}
    if "position_ids" in batch:
        inputs["position_ids"] = batch["position_ids"]
        if flatten:
            real_RL = batch["attention_mask"]
            inputs = {name: value[real_RL][None] for name, value in inputs.items()}
            mask_RL = mask_RL[real_RL][None]
    if keep_only_masked:
        columns_C = mask_RL.any(dim=0).nonzero().squeeze(1)
        logits_RCV = model(**inputs, use_cache=False, logits_to_keep=columns_C).logits
        return logits_RCV[mask_RL[:, columns_C]]
    return model(**inputs, use_cache=False).logits[mask_RL]


def check_packing(model: torch.nn.Module, flatten: bool) -> None:
    """Raise UserError if packed samples can see each other in this architecture (recurrent layers, old masks, …).

    Changes the first of two packed samples and looks whether the logits of the second one move.
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
        with torch.no_grad():
            seen.append(masked_logits(model, batch, keep_only_masked=False, flatten=flatten).float())
    model.train(was_training)
    moved = (seen[0] - seen[1]).abs().max().item()
    if moved > 1e-4 * seen[0].abs().max().item():
        raise UserError(
            f"data.packing: packed samples of a {type(model).__name__} see each other (logits move by {moved:.3g}); "
            "set data.packing to false for this student"
        )
