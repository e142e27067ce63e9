import numpy as np
import torch

from trainer.losses.cross_entropy import cross_entropy_per_token


def test_equals_the_definition_in_float64() -> None:
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(size=(9, 17)) * 4, rng.integers(0, 17, 9)
    expected = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(9), ids]
    value = cross_entropy_per_token(torch.from_numpy(logits), torch.from_numpy(ids.astype(np.int32)))
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-12)


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = (torch.randn(5, 8, generator=torch.Generator().manual_seed(0)) * 5).bfloat16()
    ids = torch.arange(5)
    value = cross_entropy_per_token(logits, ids)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, cross_entropy_per_token(logits.float(), ids))
