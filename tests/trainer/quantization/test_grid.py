"""The grid and its packing: against arithmetic on plain integers, and as fixed points."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.quantization.dense_packing import pack, unpack
from trainer.quantization.grid import BITS, Grid

bits_of = st.sampled_from(BITS)


@given(bits=bits_of, rows=st.integers(1, 4), columns=st.integers(1, 70), seed=st.integers(0, 99))
def test_packing_is_one_stream_of_bits_and_comes_back(bits: int, rows: int, columns: int, seed: int) -> None:
    half = 1 << (bits - 1)
    integers = np.random.default_rng(seed).integers(-half, half, (rows, columns))
    words = pack(torch.from_numpy(integers.astype(np.int8)), bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-columns * bits // 32))
    for row, packed in zip(integers.tolist(), words.tolist(), strict=True):
        stream = sum((value + half) << (place * bits) for place, value in enumerate(row))
        assert stream == sum((word % 2**32) << (32 * place) for place, word in enumerate(packed))
    assert unpack(words, bits, columns).tolist() == integers.tolist()


def test_packing_keeps_leading_dimensions() -> None:
    integers = torch.randint(-4, 4, (3, 5, 64)).to(torch.int8)
    words = pack(integers, 3)
    assert torch.equal(words[1], pack(integers[1], 3))
    assert torch.equal(unpack(words, 3, 64), integers)


@given(bits=bits_of, seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_rounding_is_to_the_nearest_and_rounding_twice_changes_nothing(bits: int, seed: int, dtype) -> None:
    grid = Grid(bits, 32)
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    weight[0, :32] = 0
    scales = grid.scales(weight).to(dtype)
    integers = grid.quantise(weight, scales)
    by_group, step = weight.view(4, 2, 32), scales.float()[..., None]
    inside = (by_group / step).clamp(grid.lowest, -grid.lowest - 1) * step
    away = grid.dequantise(integers, scales.float()).view(4, 2, 32) - inside
    assert (away.abs() <= step.abs() * 0.5001).all()
    fake = grid.dequantise(integers, scales)
    assert fake.dtype == dtype
    assert torch.equal(grid.quantise(fake.float(), scales), integers)
    assert torch.equal(grid.scales(fake), scales)


def test_a_signed_scale_puts_the_largest_entry_on_the_lowest_integer() -> None:
    weight = torch.tensor([[0.5, -0.25] + [0.0] * 30, [-0.5, 0.25] + [0.0] * 30])
    grid = Grid(3, 32)
    scales = grid.scales(weight)
    assert scales.tolist() == [[-0.125], [0.125]]
    assert grid.quantise(weight, scales)[:, :2].tolist() == [[-4, 2], [-4, 2]]


@pytest.mark.parametrize("bits", BITS)
def test_dequantising_rounds_once(bits: int) -> None:
    grid = Grid(bits, 32)
    integers = torch.arange(64).remainder(-2 * grid.lowest).add(grid.lowest).to(torch.int8)[None]
    scales = torch.tensor([[0.337, -1.7]], dtype=torch.bfloat16)
    found = grid.dequantise(integers, scales)[0]
    for place, value in enumerate(integers[0].tolist()):
        exact = value * Fraction(scales[0, place // 32].item())
        assert found[place].item() == torch.tensor(float(exact), dtype=torch.float64).to(torch.bfloat16).item()
