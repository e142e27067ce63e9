"""What of a running teacher a side signal is made of, and how. Runs on the engine's device.

An engine shows a tap what it asks for: outputs of decoder layers, the final hidden state, q and k of one layer, rows of
logits. The tap reduces it at once to a *piece*, a NamedTuple of small tensors or arrays, and makes a record of all
pieces of a sequence at the end. So an engine needs to know no signal, and a signal no engine.

Shape letters: P wanted rows of a sequence, D channels, S tokens, H attention heads, G key-value heads, E head
size, N rows of any sequences, V vocabulary, K stored entries.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from teacher_cache.records import Request


class SequenceQueryKey(NamedTuple):
    """q and k of one sequence in one layer, and how attention scores follow from them."""

    query_SHE: torch.Tensor  # after the rotary embedding
    key_SGE: torch.Tensor  # likewise; head h attends with key head h // (H / G)
    scaling: float  # factor of the scores q·k
    softcap: float | None  # scores become softcap · tanh(score / softcap), where not None
    first_head: int = 0  # number of the first attention head: a tensor-parallel rank has some of them


class Tap:
    """Captures one side signal. This base asks for nothing; what a subclass asks for, it overrides the method of."""

    layers: Sequence[int] = ()  # decoder layers, numbers from 1 and rising, that ``from_layer`` is called for
    query_key_layer: int | None = None  # decoder layer whose q and k ``from_query_key`` is given
    reads_final = False  # whether ``from_final`` is called
    reads_logits = False  # whether ``from_logits`` is called

    def from_layer(self, stream_PD: torch.Tensor) -> Any:
        """The piece of a layer: the residual stream after it, at the rows that are wanted."""
        raise NotImplementedError

    def from_final(self, final_PD: torch.Tensor) -> Any:
        """The piece of the final hidden state (after the last norm), at the rows that are wanted."""
        raise NotImplementedError

    def from_query_key(self, seen: SequenceQueryKey, positions_P: torch.Tensor) -> Any:
        """The piece of q and k, for the query rows ``positions_P``. Each tensor-parallel rank makes one."""
        raise NotImplementedError

    def row_inputs(self, request: Request) -> np.ndarray:
        """What ``from_logits`` needs beside the logits, [P, …] for the rows of a sequence's logits."""
        raise NotImplementedError

    def from_logits(self, logits_NV: torch.Tensor, ids_NK: torch.Tensor, inputs_N: torch.Tensor) -> Any:
        """The piece of rows of any sequences: a NamedTuple of tensors [N, …], which the engine cuts by sequences.

        ids_NK: the entries that the logits signal keeps. inputs_N: ``row_inputs`` of the same rows.
        """
        raise NotImplementedError

    def sample(self, positions: np.ndarray, pieces: Sequence[Any]) -> Any:
        """The record, in host memory, of one sequence's rows ``positions`` (int32 [P]): of its pieces, in order."""
        raise NotImplementedError
