"""Capture of ``attention``: softmaxed attention rows from q and k. Runs on the engine's device.

Only rows at the chosen positions are computed, in chunks. Attention heads are ranked by focus: the entropy of their
rows, averaged over the chosen positions of the sequence. (The mean of a softmaxed row, which others have used, is 1/n
for any row.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from schemas.cache_config import AttentionCapture, layer_number
from teacher_cache.signals.attention.record import AttentionSample
from teacher_cache.signals.tap import SequenceQueryKey, Tap

CHUNK_WEIGHTS = 1 << 25  # attention weights per chunk
HEAD_DIMS = (0, 0, 1, 1)  # dimension of the attention heads in the fields of AttentionRows


class AttentionRows(NamedTuple):
    """Attention rows of one sequence before heads are chosen: P rows, H attention heads, the M largest weights."""

    heads_H: torch.Tensor  # int32
    entropy_H: torch.Tensor  # float64, nats, mean over the rows
    weights_PHM: torch.Tensor  # float32, descending; 0 beyond the row's keys
    keys_PHM: torch.Tensor  # int32; 0 where the weight is 0


def attention_rows(
    query_SHE: torch.Tensor,
    key_SGE: torch.Tensor,
    positions_P: torch.Tensor,
    scaling: float,
    softcap: float | None,
    n_keys: int,
    first_head: int = 0,
) -> AttentionRows:
    """Rows ``positions_P`` of causal attention within one sequence, for all attention heads given.

    Args:
        query_SHE: [S, H, E] after the rotary embedding.
        key_SGE: [S, G, E] after the rotary embedding; attention head h uses key head h // (H / G).
        scaling: factor of q·k.
        softcap: scores become softcap * tanh(score / softcap), where not None.
        n_keys: number of weights to keep per row.
        first_head: number of the first attention head (a tensor-parallel rank has a slice of them).
    """
    length, n_heads = query_SHE.shape[:2]
    per_chunk = max(1, CHUNK_WEIGHTS // (n_heads * length))
    chunks = [
        _reduce(_probabilities(query_SHE, key_SGE, chunk_P, scaling, softcap), n_keys)
        for chunk_P in positions_P.split(per_chunk)
    ]
    return _join(chunks, first_head, n_heads, n_keys)


def _probabilities(
    query_SHE: torch.Tensor, key_SGE: torch.Tensor, positions_P: torch.Tensor, scaling: float, softcap: float | None
) -> torch.Tensor:
    """Attention rows after the softmax, float32 [H, P, S]."""
    query_HPE, key_GSE = query_SHE[positions_P].transpose(0, 1), key_SGE.transpose(0, 1)
    later_PS = torch.arange(len(key_SGE), device=positions_P.device) > positions_P[:, None]
    scores_HPS = attention_scores(query_HPE, key_GSE, scaling, softcap)
    return scores_HPS.masked_fill(later_PS, -torch.inf).softmax(dim=2)


def attention_scores(
    query_HPE: torch.Tensor, key_GSE: torch.Tensor, scaling: float, softcap: float | None
) -> torch.Tensor:
    """Attention scores before mask and softmax, float32 [H, P, S]; arguments as for ``attention_rows``."""
    (n_heads, n_rows, size), (n_groups, n_keys, _) = query_HPE.shape, key_GSE.shape
    # The attention heads of a group are rows of one product: broadcasting would copy the keys for each of them.
    query_GPE = query_HPE.float().reshape(n_groups, n_heads // n_groups * n_rows, size)
    scores_GPS = torch.bmm(query_GPE, key_GSE.float().transpose(1, 2))
    scores_HPS = scores_GPS.mul(scaling).view(n_heads, n_rows, n_keys)
    return scores_HPS if softcap is None else softcap * torch.tanh(scores_HPS / softcap)


def _reduce(weights_HPS: torch.Tensor, n_keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Entropy summed over the rows, float64 [H] (nats), and the largest weights [H, P, M] with their keys."""
    entropy_H = torch.special.entr(weights_HPS).sum(dim=(1, 2), dtype=torch.float64)
    weights, keys = weights_HPS.topk(min(n_keys, weights_HPS.shape[2]), dim=2)
    return entropy_H, weights, keys.masked_fill(weights == 0, 0)


def _join(
    chunks: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], first_head: int, n_heads: int, n_keys: int
) -> AttentionRows:
    entropy_H = torch.stack([entropy for entropy, _, _ in chunks]).sum(dim=0)
    weights_HPM = torch.cat([weights for _, weights, _ in chunks], dim=1)
    keys_HPM = torch.cat([keys for _, _, keys in chunks], dim=1)
    missing = (0, n_keys - weights_HPM.shape[2])
    weights_PHM, keys_PHM = (
        torch.nn.functional.pad(part, missing).transpose(0, 1).contiguous() for part in (weights_HPM, keys_HPM.int())
    )
    heads_H = torch.arange(first_head, first_head + n_heads, dtype=torch.int32, device=entropy_H.device)
    return AttentionRows(heads_H, entropy_H / max(1, len(weights_PHM)), weights_PHM, keys_PHM)


def choose_heads(rows: AttentionRows, heads: int | list[int], first_head: int = 0) -> AttentionRows:
    """Keep the ``heads`` most focused attention heads, most focused first (ties by number), or those listed.

    ``rows`` are those of consecutive attention heads from ``first_head`` on; nothing is read back from the device.
    Applying it to each tensor-parallel rank and again to the merged choices equals applying it to all heads at once.
    """
    if isinstance(heads, int):
        return _at(rows, rows.entropy_H.argsort(stable=True)[:heads])
    places = [head - first_head for head in heads if 0 <= head - first_head < len(rows.heads_H)]
    return _at(rows, places)


def _at(rows: AttentionRows, places: torch.Tensor | list[int]) -> AttentionRows:
    """The attention heads at these places, in their order."""
    if isinstance(places, list):  # slices: a list as an index would be uploaded
        return AttentionRows(
            *(
                torch.cat([part.narrow(dim, 0, 0), *(part.narrow(dim, place, 1) for place in places)], dim)
                for part, dim in zip(rows, HEAD_DIMS, strict=True)
            )
        )
    return AttentionRows(*(part.index_select(dim, places) for part, dim in zip(rows, HEAD_DIMS, strict=True)))


def merge_ranks(parts: Sequence[AttentionRows]) -> AttentionRows:
    """Concatenate the attention heads of all tensor-parallel ranks."""
    return AttentionRows(*(torch.cat(part, dim) for part, dim in zip(zip(*parts, strict=True), HEAD_DIMS, strict=True)))


def to_attention_sample(positions: np.ndarray, rows: AttentionRows, heads: int | list[int]) -> AttentionSample:
    """Record of one sequence, from host tensors. Listed attention heads keep the order of the list."""
    numbers = rows.heads_H.numpy()
    if isinstance(heads, int):
        places = np.lexsort((numbers, rows.entropy_H.numpy()))[:heads]
    else:
        places = np.array([numbers.tolist().index(head) for head in heads])
    weights_PHM, keys_PHM = rows.weights_PHM.numpy(), rows.keys_PHM.numpy()
    return AttentionSample(positions, numbers[places], weights_PHM[:, places], keys_PHM[:, places])


class AttentionTap(Tap):
    """Keeps attention rows of the most focused attention heads, or of those listed."""

    def __init__(self, settings: AttentionCapture, num_layers: int) -> None:
        self._settings = settings
        self.query_key_layer = layer_number(settings.layer, num_layers)

    def from_query_key(self, seen: SequenceQueryKey, positions_P: torch.Tensor) -> AttentionRows:
        """Reduce this rank's attention heads to those that can be chosen among all ranks'."""
        rows = attention_rows(
            seen.query_SHE,
            seen.key_SGE,
            positions_P,
            seen.scaling,
            seen.softcap,
            self._settings.keys,
            seen.first_head,
        )
        return choose_heads(rows, self._settings.heads, seen.first_head)

    def sample(self, positions: np.ndarray, pieces: Sequence[AttentionRows]) -> AttentionSample:
        """Merge the pieces of all ranks."""
        return to_attention_sample(positions, merge_ranks(pieces), self._settings.heads)
