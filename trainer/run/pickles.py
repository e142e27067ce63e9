"""Safe unpickling of checkpoints: no code in them is executed.

``torch.load`` is restricted to tensors and plain values, whoever calls it. A sharded checkpoint's metadata, which
``torch.distributed.checkpoint`` unpickles without restriction, is validated beforehand.
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
            raise UserError(f"names {module}.{name}, which does not describe tensors")
        return NAMED[module, name]


def check_metadata(path: Path) -> None:
    """Raise UserError if ``path``, a sharded checkpoint's metadata, unpickles to anything but tensor descriptions."""
    try:
        with path.open("rb") as file:
            _OnlyDescriptions(file).load()
    except UserError as error:
        raise UserError(f"{path}: {error}; use a checkpoint from a trusted source") from None
    except Exception as error:  # damaged pickles can raise anything
        raise UserError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None


def check_checkpoint(folder: Path) -> None:
    """Run ``check_metadata`` on every metadata file of a checkpoint."""
    for path in sorted(folder.rglob(METADATA)):
        check_metadata(path)


@contextmanager
def only_data() -> Iterator[None]:
    """Restrict every ``torch.load`` within the block to tensors and plain values."""
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCED]
        else:
            os.environ[FORCED] = before
