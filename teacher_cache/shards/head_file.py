"""Reading the teacher's output head, ``head.safetensors``, from an untrusted cache."""

from typing import Any

import safetensors
import safetensors.torch
import torch

from schemas.errors import CorruptCacheError
from schemas.manifest import Manifest
from teacher_cache.output_head import OutputHead
from teacher_cache.shards.storage import HEAD, Storage, check_content

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HEADER_BYTES = 1 << 16


def read_head(storage: Storage, manifest: Manifest) -> OutputHead:
    """Read a cache's output head. Raises CorruptCacheError before allocating anything of a wrong size."""
    info, where = manifest.head, storage.where(HEAD)
    if info is None:
        raise CorruptCacheError(f"{where}: not listed in the manifest, although capture.final is set")
    vocabulary, width = manifest.teacher.vocab_size, manifest.teacher.hidden_size
    limit = 4 * vocabulary * (width + 1) + HEADER_BYTES
    if info.file.bytes > limit:
        raise CorruptCacheError(f"{where}: {info.file.bytes} bytes, expected at most {limit} for this teacher")
    data = storage.read(HEAD, max_bytes=limit)
    check_content(data, info.file, where)
    try:
        tensors: dict[str, Any] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CorruptCacheError(f"{where}: not a safetensors file: {error}") from None
    weight, bias = tensors.pop("weight", None), tensors.pop("bias", None)
    shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (weight, bias)]
    if shapes[0] != (vocabulary, width) or shapes[1] not in (None, (vocabulary,)) or tensors:
        raise CorruptCacheError(
            f"{where}: weight {shapes[0]}, bias {shapes[1]}, others {sorted(tensors)}; expected a weight "
            f"{(vocabulary, width)} and optionally a bias {(vocabulary,)}"
        )
    if weight.dtype not in FLOATS or not torch.isfinite(weight).all():
        raise CorruptCacheError(f"{where}: the weight must be float16, bfloat16 or float32, and finite")
    return OutputHead(weight, bias, info.scale, info.softcap)
