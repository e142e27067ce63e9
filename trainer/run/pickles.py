"""A checkpoint holds pickles, torch's: nothing in them is run.

``torch.load`` is held to tensors and plain values wherever it is called. The metadata of a sharded checkpoint, which
``torch.distributed.checkpoint`` unpickles as they are, are looked through before.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint.filesystem as stored
import torch.distributed.checkpoint.metadata as described

from schemas.errors import UserError

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
METADATA = ".metadata"
DESCRIPTIONS = ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING")
STORAGES = ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")
NAMED: dict[tuple[str, str], Any] = {
    **{(described.__name__, name): getattr(described, name) for name in (*DESCRIPTIONS, *STORAGES)},
    **{(stored.__name__, name): getattr(stored, name) for name in ("_StorageInfo", "_StoragePrefix")},
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("pathlib", "PosixPath"): Path,
}


class _OnlyDescriptions(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMED:
            raise UserError(f"names {module}.{name}, which is no description of tensors")
        return NAMED[module, name]


def check_metadata(path: Path) -> None:
    """Raise UserError if ``path``, metadata of a sharded checkpoint, would run or make anything but descriptions."""
    try:
        with path.open("rb") as file:
            _OnlyDescriptions(file).load()
    except UserError as error:
        raise UserError(f"{path}: {error}; take a checkpoint from where you trust it") from None
    except Exception as error:  # a pickle that is damaged can raise anything
        raise UserError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None


def check_checkpoint(folder: Path) -> None:
    """``check_metadata`` of all parts of a checkpoint."""
    for path in sorted(folder.rglob(METADATA)):
        check_metadata(path)


@contextmanager
def only_data() -> Iterator[None]:
    """Within the block ``torch.load`` reads tensors and plain values, whoever calls it and however."""
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCED]
        else:
            os.environ[FORCED] = before
