"""Tap: captures a side signal from a running teacher. Runs on the engine's device.

An engine passes a tap the activations it declares: outputs of decoder layers, the final hidden state, q and k of one
layer, rows of logits. The tap reduces each at once to a *piece*, a NamedTuple of small tensors or arrays, and finally
makes a record of all pieces of a sequence. So engines know no signal, and signals no engine.

Shape letters: P wanted rows of a sequence, D channels, S tokens, H attention heads, G key-value heads, E size of an
attention head, N rows of any sequences, V vocabulary, K stored entries.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from teacher_cache.records import Request


class SequenceQueryKey(NamedTuple):
    """q and k of one sequence in one layer, and the parameters of its attention scores."""

    query_SHE: torch.Tensor  # after the rotary embedding
    key_SGE: torch.Tensor  # after the rotary embedding; attention head h uses key head h // (H / G)
    scaling: float  # factor of q·k
    softcap: float | None  # scores become softcap · tanh(score / softcap), where not None
    first_head: int = 0  # number of the first attention head: a tensor-parallel rank has a slice of them


class Tap:
    """Captures one side signal. A subclass declares what it reads and overrides the corresponding methods."""

    layers: Sequence[int] = ()  # decoder layers, from 1 and ascending, that ``from_layer`` is called for
    query_key_layer: int | None = None  # decoder layer whose q and k are passed to ``from_query_key``
    reads_final = False  # whether ``from_final`` is called
    reads_logits = False  # whether ``from_logits`` is called

    def from_layer(self, stream_PD: torch.Tensor) -> Any:
        """Piece of one layer, from the residual stream after it at the wanted rows."""
        raise NotImplementedError

    def from_final(self, final_PD: torch.Tensor) -> Any:
        """Piece of the final hidden state (after the last norm) at the wanted rows."""
        raise NotImplementedError

    def from_query_key(self, seen: SequenceQueryKey, positions_P: torch.Tensor) -> Any:
        """Piece of q and k for the query rows ``positions_P``; one per tensor-parallel rank."""
        raise NotImplementedError

    def row_inputs(self, request: Request) -> np.ndarray:
        """Further input of ``from_logits``, [P, …] for the rows of a sequence's logits."""
        raise NotImplementedError

    def from_logits(self, logits_NV: torch.Tensor, ids_NK: torch.Tensor, inputs_N: torch.Tensor) -> Any:
        """Piece of rows of any sequences: a NamedTuple of tensors [N, …], which the engine splits by sequence.

        ids_NK: ids of the entries that the logits signal stores. inputs_N: ``row_inputs`` of the same rows.
        """
        raise NotImplementedError

    def sample(self, positions: np.ndarray, pieces: Sequence[Any]) -> Any:
        """Record, in host memory, of one sequence's rows ``positions`` (int32 [P]) from its pieces in order."""
        raise NotImplementedError
