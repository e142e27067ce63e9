"""What a checkpoint of an adapter holds: the weights that are trained, without the frozen ones.

One file, ``trained.safetensors``, by the names that the weights have in the student; of a sharded student a
``torch.distributed.checkpoint`` folder, as for other students.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from schemas.errors import UserError
from trainer.adapters.lora_layers import trained_parameters
from trainer.student.parallel import SHARDED_WEIGHTS

TRAINED_FILE = "trained.safetensors"


def save_trained(student: torch.nn.Module, folder: Path) -> None:
    """Write the trained weights of a student that is not sharded to a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(trained_parameters(student), folder / TRAINED_FILE)


def save_weights(weights: dict[str, torch.nn.Parameter], path: Path) -> None:
    """Write weights, wherever they are, to a safetensors file."""
    save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, path)


def load_trained(student: torch.nn.Module, folder: Path) -> None:
    """Load what ``save_trained`` wrote into the student, in place. Raises UserError if other weights are trained."""
    fill(trained_parameters(student), stored_weights(folder / TRAINED_FILE), folder)


def stored_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, by name."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping


@torch.no_grad()
def fill(weights: dict[str, torch.nn.Parameter], stored: dict[str, torch.Tensor], where: Path) -> None:
    """Copy stored weights into those of the same names. Raises UserError if names or shapes differ."""
    for name in sorted(weights.keys() ^ stored.keys()):
        raise UserError(f"{where}: {'lacks' if name in weights else 'has'} {name}; it is not of this student's adapter")
    for name, weight in weights.items():
        if weight.shape != stored[name].shape:
            found, wanted = tuple(stored[name].shape), tuple(weight.shape)
            raise UserError(f"{where}: {name} has the shape {found}, wanted {wanted}; its rank or base is another")
        weight.copy_(stored[name])


def leave_out_frozen(student: torch.nn.Module) -> None:
    """Make ``state_dict()`` of a sharded student return trained weights only: accelerate writes what it returns."""
    if not hasattr(student, "leaves_out_frozen"):
        vars(student)["leaves_out_frozen"] = student.register_state_dict_post_hook(_drop_frozen)


def _drop_frozen(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    kept = {prefix + name for name in trained_parameters(module)}
    for name in [name for name in state if name.startswith(prefix) and name not in kept]:
        del state[name]


def load_trained_shards(student: torch.nn.Module, folder: Path) -> None:
    """Load a sharded checkpoint into the sharded student, in place; collective. Raises UserError."""
    from torch.distributed.checkpoint import CheckpointException, load

    try:
        load(
            {"model": {name: weight.data for name, weight in trained_parameters(student).items()}},
            checkpoint_id=folder / SHARDED_WEIGHTS,
        )
    except CheckpointException as error:
        raise UserError(f"{folder}: not of this student's adapter: {error}") from None


def trained_in(folder: Path) -> dict[str, torch.Tensor]:
    """The trained weights in a checkpoint of either kind, whole, on the CPU of this process alone."""
    if (folder / TRAINED_FILE).is_file():
        return stored_weights(folder / TRAINED_FILE)
    import warnings

    from torch.distributed.checkpoint import FileSystemReader, load

    shards = folder / SHARDED_WEIGHTS
    stored: Any = FileSystemReader(shards).read_metadata().state_dict_metadata
    names = {name: name.removeprefix("model.") for name in stored}
    weights = {names[name]: torch.empty(one.size, dtype=one.properties.dtype) for name, one in stored.items()}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # it warns about running without other ranks
        load({"model": weights}, checkpoint_id=shards, no_dist=True)
    return weights
