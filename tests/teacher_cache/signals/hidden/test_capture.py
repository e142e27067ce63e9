"""Error of quantised hidden states."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import HiddenCapture
from teacher_cache.signals.hidden.capture import dequantise, quantise, to_floats, to_hidden_sample


def round_trip(hidden: torch.Tensor, capture: HiddenCapture) -> torch.Tensor:
    return dequantise(*quantise(hidden, capture), capture)


def residual_stream(rows: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Like a real residual stream: channels of different scales, a few of them hundreds of times larger."""
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, channels, generator=rng) * torch.exp(0.3 * torch.randn(channels, generator=rng))
    hidden[:, :: channels // 3] *= 300
    return hidden


def test_int8_is_within_one_percent_even_without_the_largest_channels() -> None:
    hidden = residual_stream(200, 576)
    error = round_trip(hidden, HiddenCapture()) - hidden
    assert (error.norm(dim=1) / hidden.norm(dim=1)).max() < 0.01
    largest = hidden.abs().topk(6, dim=1).indices
    rest, rest_error = hidden.scatter(1, largest, 0.0), error.scatter(1, largest, 0.0)
    assert (rest_error.norm(dim=1) / rest.norm(dim=1)).max() < 0.01


def test_without_outliers_a_large_channel_ruins_its_group() -> None:
    """Why outliers are stored separately: with one of three, the other two large channels ruin their groups."""
    hidden = residual_stream(50, 576)
    largest = hidden.abs().topk(6, dim=1).indices
    few = HiddenCapture(channels_per_outlier=576)
    error = (round_trip(hidden, few) - hidden).scatter(1, largest, 0.0)
    assert (error.norm(dim=1) / hidden.scatter(1, largest, 0.0).norm(dim=1)).mean() > 0.03


LOST = {"int8": 0.01, "float8_e4m3": 0.03, "int4": 0.12}  # measured: 0.005, 0.02, 0.09


@pytest.mark.parametrize("dtype", LOST)
def test_error_of_small_dtypes(dtype: str) -> None:
    hidden = residual_stream(200, 576)
    largest = hidden.abs().topk(6, dim=1).indices
    error = (round_trip(hidden, HiddenCapture(dtype=dtype)) - hidden).scatter(1, largest, 0.0)
    lost = error.norm(dim=1) / hidden.scatter(1, largest, 0.0).norm(dim=1)
    assert LOST[dtype] / 3 < lost.mean() < LOST[dtype]


def test_two_channels_of_int4_share_a_byte_and_keep_their_signs() -> None:
    hidden = torch.tensor([[-7.0, 3, 5, -1, 0, 7, 100, 0]])
    capture = HiddenCapture(dtype="int4", channels_per_scale=8, channels_per_outlier=8)
    rows = quantise(hidden, capture)
    assert rows.values_ND.view(torch.uint8).tolist() == [[0x39, 0xF5, 0x70, 0x00]]
    assert dequantise(*rows, capture).tolist() == hidden.tolist()


def test_float8_rounds_to_three_bits_of_mantissa() -> None:
    """The largest value of a group is 448 in units of its scale; anything above would become NaN."""
    hidden = torch.tensor([[448.0, 17, 19, 1.06, -0.015, 0.0009, 1e6, 0]])
    found = round_trip(hidden, HiddenCapture(dtype="float8_e4m3", channels_per_scale=8, channels_per_outlier=8))
    assert found[0, :6].tolist() == [448, 16, 20, 1, -0.015625, 0]
    assert found[0, 6] == torch.tensor(1e6).bfloat16()


@given(
    dtype=st.sampled_from(["int8", "float8_e4m3", "int4"]),
    rows=st.integers(0, 5),
    channels=st.sampled_from([1, 31, 32, 33, 100]),
    per_scale=st.sampled_from([1, 32, 64]),
    per_outlier=st.sampled_from([2, 64]),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4, 1e30]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_errors_are_at_most_half_a_step_of_the_group(
    dtype: str, rows: int, channels: int, per_scale: int, per_outlier: int, scale: float, seed: int
) -> None:
    channels += channels % 2 * (dtype == "int4")
    hidden = scale * torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))
    capture = HiddenCapture(dtype=dtype, channels_per_scale=per_scale, channels_per_outlier=per_outlier)
    found = round_trip(hidden, capture)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    largest = hidden.abs().amax(dim=1, keepdim=True) if rows else hidden.abs()
    half_step = {"int8": 0.51 / 127, "float8_e4m3": 2**-4, "int4": 0.51 / 7}[dtype]
    assert ((found - hidden).abs() <= largest * (half_step + 2**-8) + 1e-37).all()


@pytest.mark.parametrize(("dtype", "relative"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_floating_dtypes_round_to_nearest(dtype: str, relative: float) -> None:
    hidden = residual_stream(20, 64)
    capture = HiddenCapture(dtype=dtype)
    found = round_trip(hidden, capture)
    assert ((found - hidden).abs() <= relative * hidden.abs()).all()
    assert quantise(hidden, capture).scales_NG.shape == (20, 0)


def test_channels_above_two_to_the_fifteen_keep_their_numbers() -> None:
    hidden = torch.zeros(2, 40_000)
    hidden[0, 39_999], hidden[1, 32_768] = 5.0, -7.0
    assert torch.equal(round_trip(hidden, HiddenCapture()), hidden)


def test_layers_are_stacked_in_order() -> None:
    capture = HiddenCapture()
    layers = [quantise(torch.full((3, 8), value), capture) for value in (1.0, 2.0)]
    sample = to_hidden_sample(np.array([1, 4, 6], np.int32), layers)
    assert sample.values.shape == (3, 2, 8)
    found = to_floats(sample, capture)
    assert (found[:, 0] - 1).abs().max() < 0.01
    assert (found[:, 1] - 2).abs().max() < 0.01
