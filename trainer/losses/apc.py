"""Attention pattern consistency (APC): KL(teacher ‖ student) of attention rows, from the sparse rows of a cache.

Attention heads of two models have no common numbering. They are paired by rank of focus: the teacher's most focused
attention head with the student's, and so on. Focus is low row entropy; the mean of a softmaxed row is 1/S for every
attention head and carries no information. A row keeps its M largest weights; all other keys form one bucket. As in TLA
the value is therefore a lower bound of the dense KL: it constrains the total weight of the other keys, not its
distribution among them.

Only the stored rows are computed, over the sample's keys up to their own, in chunks of ``CHUNK_WEIGHTS``: all
attention heads without gradient, to select the most focused ones; the selected ones with gradient, recomputed in the
backward pass (activation checkpointing). Memory does not grow with rows x keys.

Trade-off: the student's bucket is summed over the complement of the stored keys (one more [N, R, S] array) instead of
taken as 1 - (stored weight), which has no digits left in float32 once the student's row is sharp.

Shape letters: N query rows, H attention heads of the student, G key-value heads, R ranks of focus, M stored weights per
row, S keys, D channels per attention head.
"""

import itertools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.checkpoint import checkpoint

from schemas.cache_config import layer_number
from schemas.errors import UserError
from schemas.manifest import Manifest
from schemas.train_config import ApcConfig
from teacher_cache.query_key import QueryKey
from teacher_cache.signals.attention.capture import attention_scores
from trainer.losses.loss import Batch, FeatureLoss
from trainer.losses.places import places
from trainer.student.forward import flattens
from trainer.student.recorder import Recorded, Wanted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_WEIGHTS = {"cpu": 1 << 22, "cuda": 1 << 23}  # attention weights computed at one time, about 30 bytes each


class Apc(FeatureLoss[ApcConfig]):
    """Attention rows of one layer, at the query rows where the teacher's are stored."""

    rows = "attention"
    signals = frozenset({"attention"})

    def title(self) -> str:
        """Title in the model card."""
        return "APC, attention rows"

    def attach(self, student: "PreTrainedModel", manifest: Manifest, seed: int) -> Wanted:
        """Check the number of attention heads and resolve the student's layer."""
        config = student.config.get_text_config()
        self.flat = flattens(student)
        self.layer = layer_number(self.settings.student_layer, config.num_hidden_layers)
        check_heads(self.settings, manifest, config.num_attention_heads)
        return Wanted(attention_layers=[self.layer])

    def total(self, recorded: Recorded, batch: Batch) -> torch.Tensor:
        """Sum over the stored query rows of the mean over ranks, nats."""
        attention = recorded.query_key[self.layer]
        row_N, column_N, shift_N = places(batch, "attention", self.flat)
        if len(row_N) == 0:
            return attention.query_RHLD.new_zeros(())
        first_N = batch["attention_first_column"] + shift_N
        weights_NRM = batch["attention_weights"]
        keys_NRM = batch["attention_keys"] + (shift_N - first_N)[:, None, None]
        keys_NRM = keys_NRM.masked_fill(weights_NRM == 0, 0)  # in the padding they may be another sample's
        position_N = column_N - first_N
        query_NHD = attention.query_RHLD[row_N, :, column_N]
        samples = [batch["attention_sample"].long(), position_N, row_N, first_N]
        sample_N, positions_N, rows_N, firsts_N = torch.stack(samples).cpu()  # in one transfer
        sizes = sample_N.unique_consecutive(return_counts=True)[1].tolist()
        n_keys = [part.tolist() for part in (positions_N + 1).split(sizes)]
        sample_keys = _sample_keys(attention, rows_N, firsts_N, n_keys)
        parts = (part.split(sizes) for part in (query_NHD, position_N, weights_NRM, keys_NRM))
        heads = self.settings.student_heads
        return torch.stack(
            [
                apc_of_sequence(attention, key_GSD, query_nHD, position_n, weights_nRM, keys_nRM, seen, heads)
                for key_GSD, query_nHD, position_n, weights_nRM, keys_nRM, seen in zip(
                    sample_keys, *parts, n_keys, strict=True
                )
            ]
        ).sum()


def _sample_keys(
    attention: QueryKey, row_N: torch.Tensor, first_N: torch.Tensor, n_keys: list[list[int]]
) -> list[torch.Tensor]:
    """The keys [G, S, D] of each sample, from its first token to its last stored row.

    row_N, first_N: on the host. n_keys: of each sample, the keys that each of its rows sees. ``split`` rather than
    slicing: its backward pass allocates one tensor, not one per sample.
    """
    starts = list(itertools.accumulate(map(len, n_keys[:-1]), initial=0))
    spans = [
        (row, first, first + max(seen))
        for row, first, seen in zip(row_N[starts].tolist(), first_N[starts].tolist(), n_keys, strict=True)
    ]
    rows = attention.key_RGLD.unbind(0)
    keys: list[torch.Tensor] = []
    for r, group in itertools.groupby(spans, key=operator.itemgetter(0)):
        bounds = [0, *(bound for _, first, stop in group for bound in (first, stop)), rows[r].shape[1]]
        pieces = rows[r].split([stop - start for start, stop in itertools.pairwise(bounds)], dim=1)
        keys += pieces[1::2]
    return keys


def check_heads(settings: ApcConfig, manifest: Manifest, student_heads: int) -> None:
    """Raise UserError unless the student has an attention head for each stored one."""
    assert manifest.capture.attention is not None
    stored, chosen = manifest.capture.attention.n_heads, settings.student_heads
    if chosen is not None and (len(chosen) != stored or max(chosen) >= student_heads):
        raise UserError(
            f"losses.apc.student_heads: {chosen}: the cache stores {stored} attention heads and the student has heads "
            f"0 to {student_heads - 1}; name one of them for each stored head"
        )
    if stored > student_heads:
        raise UserError(
            f"losses.apc: the cache stores {stored} attention heads, the student has {student_heads}; leave the loss "
            "out or make a cache with fewer"
        )


def apc_of_sequence(
    attention: QueryKey,
    key_GSD: torch.Tensor,
    query_NHD: torch.Tensor,
    position_N: torch.Tensor,
    weights_NRM: torch.Tensor,
    keys_NRM: torch.Tensor,
    n_keys: Sequence[int],
    heads: list[int] | None = None,
) -> torch.Tensor:
    """``apc_per_row`` summed over the query rows of one sequence: a scalar, nats.

    attention: gives scaling and soft cap of the scores. key_GSD: keys of the sequence, from its first token. query_NHD:
    queries of the rows at ``position_N`` (int64, from the sequence's first token). weights_NRM, keys_NRM: as in
    ``apc_per_row``. n_keys: ``position_N + 1`` on the host. heads: R attention heads of the student in the order of the
    teacher's; None: the most focused ones.
    """
    query_HND = query_NHD.transpose(0, 1)
    if heads is None:
        heads_R = _most_focused_heads(attention, query_HND, key_GSD, position_N, n_keys, weights_NRM.shape[1])
    else:
        heads_R = torch.tensor(heads, device=key_GSD.device)
    query_RND, key_RSD = query_HND[heads_R], key_GSD[heads_R // (len(query_HND) // len(key_GSD))].float()

    def loss(query_RnD: torch.Tensor, key_RSD: torch.Tensor, rows: slice, stop: int) -> torch.Tensor:
        scores_RnS = _masked_scores(attention, query_RnD, key_RSD[:, :stop], position_N[rows])
        log_probs_nRS = scores_RnS.log_softmax(dim=-1).transpose(0, 1)
        return apc_per_row(weights_NRM[rows], keys_NRM[rows], log_probs_nRS).sum()

    parts = [
        checkpoint(loss, query_RND[:, rows], key_RSD, rows, stop, use_reentrant=False, preserve_rng_state=False)
        for rows, stop in _chunks(n_keys, len(heads_R), key_GSD.device.type)
    ]
    return torch.stack(parts).sum()


@torch.no_grad()
def _most_focused_heads(
    attention: QueryKey,
    query_HND: torch.Tensor,
    key_GSD: torch.Tensor,
    position_N: torch.Tensor,
    n_keys: Sequence[int],
    h: int,
) -> torch.Tensor:
    """``most_focused`` of one sequence, int64 [h]; arguments as for ``apc_of_sequence``."""
    key_GSD = key_GSD.float()  # once, not per chunk
    entropy_NH = torch.cat(
        [
            row_entropies(
                _masked_scores(attention, query_HND[:, rows], key_GSD[:, :stop], position_N[rows]).softmax(dim=-1)
            ).T
            for rows, stop in _chunks(n_keys, len(query_HND), key_GSD.device.type)
        ]
    )
    return most_focused(entropy_NH, torch.zeros_like(position_N), 1, h)[0]


def _chunks(n_keys: Sequence[int], n_heads: int, device: str) -> list[tuple[slice, int]]:
    """Slices of consecutive rows whose attention weights are computed at one time, and the keys computed for each.

    n_keys: keys that each row sees, ascending. Rows that fit are one chunk over all keys. Else a half, a quarter, … of
    the keys are computed for the rows that see no more, and more rows at a time: chunks of one size are what allocators
    reuse.
    """
    most, size = max(n_keys), CHUNK_WEIGHTS.get(device, CHUNK_WEIGHTS["cuda"]) // n_heads
    if len(n_keys) * most <= size:
        return [(slice(0, len(n_keys)), most)]
    chunks, start = [], 0
    for halvings, group in itertools.groupby(n_keys, key=lambda seen: (most // seen).bit_length() - 1):
        keys, end = -(-most // (1 << halvings)), start + len(list(group))
        rows = max(1, size // keys)
        chunks += [(slice(first, min(first + rows, end)), keys) for first in range(start, end, rows)]
        start = end
    return chunks


def _masked_scores(
    attention: QueryKey, query_HND: torch.Tensor, key_GSD: torch.Tensor, position_N: torch.Tensor
) -> torch.Tensor:
    """Attention scores, float32 [H, N, S]; -inf at later keys."""
    later_NS = torch.arange(key_GSD.shape[1], device=position_N.device) > position_N[:, None]
    return attention_scores(query_HND, key_GSD, attention.scaling, attention.softcap).masked_fill(later_NS, -torch.inf)


def row_entropies(p_S: torch.Tensor) -> torch.Tensor:
    """-Σ p log p of attention rows, nats, [..., S] → [...]; keys of weight 0 contribute 0."""
    return torch.special.entr(p_S).sum(dim=-1)


def most_focused(entropy_NH: torch.Tensor, sequence_N: torch.Tensor, n_sequences: int, h: int) -> torch.Tensor:
    """The h ≤ H attention heads of lowest mean entropy in each sequence, most focused first; int64 [n_sequences, h].

    sequence_N: integer, the sequence of each row. All heads of a sequence have the same number of rows, so sums order
    them as means would. The sort is stable; a sequence without rows gets heads 0 … h - 1.
    """
    total_QH = entropy_NH.new_zeros(n_sequences, entropy_NH.shape[1])  # Q sequences
    total_QH.index_add_(0, sequence_N.long(), entropy_NH.detach())
    return total_QH.argsort(dim=-1, stable=True)[:, :h]


def apc_per_row(weights_NRM: torch.Tensor, keys_NRM: torch.Tensor, log_probs_NRS: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) over the stored keys and one bucket, mean over ranks; nats [N].

    weights_NRM: the teacher's probabilities, 0 in the padding. keys_NRM: integer key positions < S, distinct where
    the weight is positive, arbitrary in the padding. log_probs_NRS: the student's log-softmaxed rows (row n, rank r:
    its r-th most focused attention head), -inf at masked keys; computed in float32 (float64 stays float64).

    The bucket has teacher probability max(1 - stored weight, 0). Where that is 0, by rounding of the weights or because
    the student has no other key, the stored weights are divided by their sum and the bucket contributes 0, so that
    every row is a probability distribution. Values and gradients are finite, except that a row is inf where a key of
    positive weight is masked for the student.
    """
    log_probs_NRS = log_probs_NRS.to(torch.promote_types(log_probs_NRS.dtype, torch.float32))
    keys_NRM = keys_NRM.long()
    stored_NRM = weights_NRM > 0
    marks_NRS = torch.zeros_like(log_probs_NRS, dtype=torch.uint8)
    stored_NRS = marks_NRS.scatter_reduce_(2, keys_NRM, stored_NRM.to(torch.uint8), "amax").bool()
    rest_NRS = log_probs_NRS.masked_fill(stored_NRS, -torch.inf)
    has_rest_NR = (rest_NRS > -torch.inf).any(dim=-1)

    p_NRM = weights_NRM.to(log_probs_NRS.dtype)
    mass_NR = p_NRM.sum(dim=-1)
    whole_NR = (mass_NR >= 1) | ~has_rest_NR
    p_NRM = p_NRM / mass_NR.masked_fill(~whole_NR | (mass_NR == 0), 1)[..., None]
    p_rest_NR = (1 - mass_NR).masked_fill(whole_NR, 0)

    log_q_NRM = log_probs_NRS.gather(2, keys_NRM).masked_fill(~stored_NRM, 0)
    # logsumexp of an all -inf row has a NaN gradient: replace such rows by a finite one; its result is unused.
    log_q_rest_NR = torch.logsumexp(rest_NRS.masked_fill(~has_rest_NR[..., None], 0), dim=-1)
    kl_NRM = torch.xlogy(p_NRM, p_NRM) - p_NRM * log_q_NRM
    kl_rest_NR = torch.xlogy(p_rest_NR, p_rest_NR) - p_rest_NR * log_q_rest_NR
    return (kl_NRM.sum(dim=-1) + kl_rest_NR).mean(dim=-1)
