import errno
import pickle

import pytest
import torch

from trainer.data.worker_transfer import Sender, _Parcel, check_workers, worker_trouble


def batch() -> dict[str, torch.Tensor]:
    return {
        "mask": torch.rand(2, 3) < 0.5,  # 6 bytes: what follows must be aligned
        "ids": torch.arange(24).reshape(2, 3, 4),
        "none": torch.empty(2, 3, 0, dtype=torch.int32),
        "logprobs": torch.randn(2, 4, 3).transpose(1, 2),
        "half": torch.randn(5).bfloat16(),
        "skipped": torch.tensor([7]),
    }


@pytest.mark.parametrize("shares_memory", [True, False])
def test_a_batch_arrives_as_it_was(shares_memory: bool) -> None:
    sent = batch()
    found = pickle.loads(pickle.dumps(_Parcel(sent, shares_memory)))
    assert list(found) == list(sent)
    for name, tensor in sent.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert found[name].is_shared() is shares_memory or not tensor.numel()
    found["ids"] += 1


def test_what_is_not_a_tensor_arrives_too() -> None:
    sent = {"step": 3, **batch(), "step_rows": {"loss_mask": 5}}
    found = pickle.loads(pickle.dumps(_Parcel(sent, True)))
    assert (found["step"], found["step_rows"]) == (3, {"loss_mask": 5})
    assert torch.equal(found["ids"], sent["ids"])


def test_without_room_in_shared_memory_bytes_are_sent(monkeypatch) -> None:
    def fail(size: int) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", fail)
    sent = batch()
    found = pickle.loads(pickle.dumps(_Parcel(sent, True)))
    assert torch.equal(found["logprobs"], sent["logprobs"])
    assert not found["logprobs"].is_shared()


def test_in_the_main_process_batches_are_not_serialised() -> None:
    made = batch()
    assert Sender(True)(made) is made


def test_workers_that_can_be_started() -> None:
    check_workers(0)
    check_workers(2)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "too many open files, the limit is "),
        (RuntimeError("unable to allocate shared memory(shm)"), "need more room in /dev/shm, which has "),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "need more room in /dev/shm"),
        (RuntimeError("DataLoader timed out after 1800 seconds"), "no batch came from a worker process"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "a worker process was killed"),
        (EOFError(), "a worker process was killed"),
        (RuntimeError("CUDA error"), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),
    ],
)
def test_failures_become_errors_with_advice(error: Exception, message: str | None) -> None:
    found = worker_trouble(error, 3)
    assert (found is None) if message is None else (message in str(found)), found
