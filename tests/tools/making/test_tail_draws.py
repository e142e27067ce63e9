import numpy as np
import pytest

from schemas.cache_config import CaptureConfig
from teacher_cache.records import LogitsSample
from teacher_cache.signals.draws.record import DrawsSample
from tools.making.tail_draws import draws_beyond

V, K, M = 24, 6, 40


def sample(
    temperature: float, n_rows: int = 1, seed: int = 0
) -> tuple[np.ndarray, LogitsSample, DrawsSample, CaptureConfig]:
    """The teacher's distribution [V], its K largest probabilities, and M draws that are exactly its tail's shares."""
    rng = np.random.default_rng(seed)
    log_p = np.sort(rng.normal(size=V) * 1.5)[::-1]
    log_p -= np.log(np.exp(log_p).sum())
    partition = np.log(np.exp(log_p / temperature).sum())
    softened = np.exp(log_p / temperature - partition)
    capture = CaptureConfig.model_validate(
        {"logits": {"k": K, "temperatures": [1.0, 3.0]}, "draws": {"n": M, "temperatures": [temperature]}}
    )
    partitions = [partition if t == temperature else 0.0 for t in capture.logits.temperatures]
    tail = rng.choice(np.arange(K, V), size=(n_rows, 1, M), p=softened[K:] / softened[K:].sum())
    logits = LogitsSample(
        positions=np.arange(n_rows, dtype=np.int32),
        num_tokens=n_rows + 1,
        counts=np.full(n_rows, K, np.int32),
        ids=np.tile(np.arange(K, dtype=np.int32), (n_rows, 1)),
        logprobs=np.tile(log_p[:K].astype(np.float32), (n_rows, 1)),
        next_logprob=np.zeros(n_rows, np.float32),
        log_partition=np.tile(np.array(partitions, np.float32), (n_rows, 1)),
    )
    draws = DrawsSample(logits.positions, tail.astype(np.int32), np.ones((n_rows, 1), np.float32))
    return softened, logits, draws, capture


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("k", [1, 4, 5])
def test_tokens_are_drawn_with_their_probability_in_the_new_tail(temperature: float, k: int) -> None:
    n_rows = 4000
    softened, logits, draws, capture = sample(temperature, n_rows)
    found = draws_beyond(k, "key", logits, draws, capture)
    expected = softened[k:] / softened[k:].sum()
    shares = np.bincount(found.ids.ravel(), minlength=V) / found.ids.size
    assert shares[:k].sum() == 0
    error = np.sqrt(expected * (1 - expected) / found.ids.size)
    assert (np.abs(shares[k:] - expected) < 5 * error + 1e-6).all()
    # Slices: the dropped entries' number of draws of a row is off by less than one draw for each of them.
    counts = (found.ids[:, 0, :, None] == np.arange(k, K)).sum(axis=1)
    assert np.abs(counts - M * expected[: K - k]).max() < 2


def test_the_same_key_gives_the_same_draws_and_another_key_others() -> None:
    _, logits, draws, capture = sample(1.0, n_rows=20)
    one, again, other = (draws_beyond(4, key, logits, draws, capture).ids for key in ("a", "a", "b"))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_a_row_without_an_old_tail_draws_dropped_entries_only() -> None:
    _, logits, draws, capture = sample(1.0)
    logits.logprobs[:] = np.log(np.array([0.5, 0.2, 0.1, 0.1, 0.06, 0.04], np.float32))
    found = draws_beyond(3, "key", logits, draws, capture)
    assert set(found.ids.ravel().tolist()) <= {3, 4, 5}
