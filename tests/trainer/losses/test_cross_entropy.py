import numpy as np
import torch

from support.reference_rows import WithGradient
from trainer.losses.cross_entropy import cross_entropy_


def test_equals_the_definition_in_float64() -> None:
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(size=(9, 17)) * 4, rng.integers(0, 17, 9)
    expected = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(9), ids]
    value, _ = cross_entropy_(torch.from_numpy(logits.copy()), torch.from_numpy(ids.astype(np.int32)))
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-12)


def test_gradient() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(5, 7, dtype=torch.float64, requires_grad=True), torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda z: WithGradient.apply(z, lambda own: cross_entropy_(own, ids)), (logits,))
