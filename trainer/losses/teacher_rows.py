"""The teacher's signals at the rows of a batch that count."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from teacher_cache.output_head import OutputHead
from trainer.losses.token_classes import TokenClasses
from trainer.losses.token_map import TokenMap


@dataclass(frozen=True)
class TeacherRows:
    """The teacher at the N rows that count. K entries per row, T temperatures, M draws, D channels.

    K and T are 0 if the logits signal is not read.
    """

    ids_NK: torch.Tensor  # integer
    logprobs_NK: torch.Tensor  # float, nats, temperature 1; -inf in the padding
    log_partition_NT: torch.Tensor  # float, nats; log Σ_v p(v)^(1/temperature)
    next_ids_N: torch.Tensor  # integer; the next token of the text
    next_logprob_N: torch.Tensor  # float, nats; its log-probability by the teacher
    draws_NTM: torch.Tensor | None = None  # integer
    entropy_NT: torch.Tensor | None = None  # float, nats; at the temperatures of the draws
    final: tuple[torch.Tensor, ...] | None = None  # final hidden states [N, 1, …], as ``dequantise`` takes them
    head: OutputHead | None = None  # the teacher's, to be applied to ``final``
    dense_N: torch.Tensor | None = None  # uint8, on the CPU; ``RowBatch.dense``; ``final`` has the rows above 0 only
    token_maps: Sequence[TokenMap] = ()  # those that ``dense_N`` counts, from 1
    classes_N: torch.Tensor | None = None  # int16, on the CPU; ``RowBatch.classes``
    token_classes: Sequence[TokenClasses | None] = ()  # those that ``classes_N`` counts, from 1
    piece_tokens_N: torch.Tensor | None = None  # integer; rows of the piece of text that ends with this row; 0: none
    piece_logprob_N: torch.Tensor | None = None  # float, nats; of a piece's teacher tokens together; see ``Pieces``


def teacher_rows(
    batch: dict[str, torch.Tensor],
    head: OutputHead | None = None,
    token_maps: Sequence[TokenMap] = (),
    token_classes: Sequence[TokenClasses | None] = (),
) -> TeacherRows:
    """The rows of ``batch`` (tensors of a RowBatch, [R, L, …]) where loss_mask is True, in row-major order.

    Row t predicts token t + 1 of the same sample: loss_mask is False at each sample's last token. head: the teacher's,
    if the cache has final hidden states. token_maps: to a student with another tokenizer, and token_classes: of its
    tokens, by cache of the mixture; on the batch's device.
    """
    mask_RL, dense_RL = batch["loss_mask"], batch.get("dense")
    final_RL = mask_RL if dense_RL is None else mask_RL & (dense_RL > 0)

    def counting(signal: str, *names: str) -> list[torch.Tensor]:
        """Arrays of a signal, restricted to its stored rows that count."""
        wanted_RL = final_RL if signal == "final" else mask_RL
        keep_N = wanted_RL[batch[f"{signal}_batch_row"], batch[f"{signal}_column"]]
        return [batch[f"{signal}_{name}"][keep_N] for name in names]

    draws_NTM, entropy_NT = counting("draws", "ids", "entropy") if "draws_ids" in batch else (None, None)
    final = counting("final", "values", "scales", "outlier_index", "outliers") if "final_values" in batch else None
    pieces = None
    if "piece_tokens" in batch:
        pieces = _within(batch["piece_tokens"], mask_RL)[mask_RL], batch["piece_logprob"][mask_RL]
    return TeacherRows(
        ids_NK=batch["ids"][mask_RL],
        logprobs_NK=batch["logprobs"][mask_RL],
        log_partition_NT=batch["log_partition"][mask_RL],
        next_ids_N=batch["input_ids"].roll(-1, dims=1)[mask_RL],
        next_logprob_N=batch["next_logprob"][mask_RL],
        draws_NTM=draws_NTM,
        entropy_NT=entropy_NT,
        final=None if final is None else tuple(final),
        head=head,
        dense_N=None if dense_RL is None else dense_RL[mask_RL].cpu(),
        token_maps=token_maps,
        classes_N=batch["classes"][mask_RL].cpu() if "classes" in batch else None,
        token_classes=token_classes,
        piece_tokens_N=None if pieces is None else pieces[0],
        piece_logprob_N=None if pieces is None else pieces[1],
    )


def _within(piece_tokens_RL: torch.Tensor, mask_RL: torch.Tensor) -> torch.Tensor:
    """The pieces without those of which a row does not count: the others are N rows in succession."""
    column_L = torch.arange(mask_RL.shape[1], device=mask_RL.device)
    gap_RL = column_L.where(~mask_RL, -1).cummax(dim=1).values
    return piece_tokens_RL.where(piece_tokens_RL <= column_L - gap_RL, 0)
