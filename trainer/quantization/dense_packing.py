"""Dense packing: integers of any width in one stream of bits along the inputs, without padding.

As compressed-tensors' ``pack-quantized`` from 0.18 on: entry i of a row, plus 2^(bits - 1), is bits i * bits … of the
row's little-endian stream of 32-bit words. Earlier versions put 10 three-bit entries in a word under the same name; a
file of one read as the other is silently wrong.
"""

import numpy as np
import torch


def pack(integers_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """int8 [O, I] → int32 [O, ⌈I * bits / 32⌉]; leading dimensions are kept. The last word's spare bits are 0."""
    unsigned = (integers_OI.numpy().astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    stream = np.unpackbits(unsigned[..., None], axis=-1, count=bits, bitorder="little")
    stream = stream.reshape(*unsigned.shape[:-1], -1)
    spare = -stream.shape[-1] % 32
    stream = np.pad(stream, [(0, 0)] * (stream.ndim - 1) + [(0, spare)])
    return torch.from_numpy(np.packbits(stream, axis=-1, bitorder="little").view("<i4").astype(np.int32))


def unpack(words: torch.Tensor, bits: int, inputs: int) -> torch.Tensor:
    """The inverse of ``pack``, int8 [O, I]; inputs: I."""
    octets = np.ascontiguousarray(words.numpy().astype("<i4")).view(np.uint8)
    stream = np.unpackbits(octets, axis=-1, count=inputs * bits, bitorder="little")
    stream = stream.reshape(*octets.shape[:-1], inputs, bits)
    unsigned = np.packbits(stream, axis=-1, bitorder="little")[..., 0].astype(np.int16)
    return torch.from_numpy((unsigned - (1 << (bits - 1))).astype(np.int8))
