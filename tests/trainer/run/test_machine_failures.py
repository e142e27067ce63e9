"""Errors of libraries that mean that another rank, or the machine, has failed."""

from pathlib import Path

import pytest
import torch

from schemas.errors import MachineError
from trainer.run.machine_failures import as_user_error


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_that_the_first_rank_gave_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """The other rank's torch.save finds no folder; to the first rank that would be an error of its own."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    with pytest.raises(RuntimeError) as caught:
        torch.save({}, tmp_path / "checkpoint-2" / "rng_state_1.pth")
    told = as_user_error(caught.value, tmp_path)
    if rank == 0:
        assert told is None
    else:
        assert isinstance(told, MachineError)
        assert "another rank of this run has ended, its message says why" in str(told)
