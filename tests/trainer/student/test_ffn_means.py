import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.tensor_memory import TensorMemory
from trainer.student.recorder import mean_abs_per_token


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 1e3]))
@settings(deadline=None, max_examples=40)
def test_equals_the_definition(shape: list[int], seed: int, scale: float) -> None:
    activation = scale * np.random.default_rng(seed).normal(size=shape)
    rows = activation.reshape(-1, shape[-1])
    expected = np.array([math.fsum(abs(x) for x in row) / len(row) for row in rows]).reshape(shape[:-1])
    value = mean_abs_per_token(torch.from_numpy(activation))
    assert value.dtype == torch.float64
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(mean_abs_per_token(torch.from_numpy(activation).float()).numpy(), expected, rtol=1e-5)


def test_half_precision_is_accumulated_in_float32() -> None:
    activation = torch.full((2, 4096), 0.01, dtype=torch.bfloat16)
    activation[:, 0] = 256.0  # in bfloat16, adding 0.01 to it changes nothing
    value = mean_abs_per_token(activation)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), activation.double().mean(-1), rtol=1e-5, atol=0)


def test_gradient() -> None:
    torch.manual_seed(0)
    signs = torch.where(torch.rand(2, 3, 7) < 0.5, -1.0, 1.0)
    activation = (signs * (0.1 + torch.rand(2, 3, 7))).double().requires_grad_()  # away from the kink
    assert torch.autograd.gradcheck(mean_abs_per_token, (activation,))


def test_gradient_is_zero_at_zero() -> None:
    activation = torch.tensor([-3.0, 0.0, 2.0, 0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(mean_abs_per_token(activation), activation)
    assert gradient.tolist() == pytest.approx([-0.25, 0, 0.25, 0])


def test_backward_holds_one_tensor_of_the_activations_shape() -> None:
    """Autograd's own holds four, the first in float32: gigabytes at packs of 32 K tokens."""
    activation = torch.randn(64, 1000).bfloat16().requires_grad_()
    value = mean_abs_per_token(activation)
    by_means = torch.randn(64)
    with TensorMemory() as memory:
        (gradient,) = torch.autograd.grad(value, activation, by_means)
    assert memory.peak < 1.1 * activation.nbytes
    expected = (by_means / 1000).bfloat16()[:, None] * activation.detach().sign()
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)
