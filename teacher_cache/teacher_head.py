"""The teacher's output head as a file of the cache, ``head.safetensors``.

It is read from the teacher's weight files, not from a running engine, so planning can store it for every engine.
"""

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from schemas.cache_config import TeacherConfig
from schemas.errors import UserError
from schemas.manifest import HeadInfo
from teacher_cache.model_class import model_class
from teacher_cache.output_head import OutputHead, logit_transform
from teacher_cache.shards.head_file import FLOATS
from teacher_cache.shards.storage import HEAD, Storage, file_entry
from teacher_cache.teacher import load_model_config


def write_head(config: TeacherConfig, storage: Storage) -> HeadInfo:
    """Write the teacher's head to the cache; returns its manifest entry. Raises UserError if it cannot be found."""
    head = read_teacher_head(config)
    tensors = {"weight": head.weight_VD} | ({} if head.bias_V is None else {"bias": head.bias_V})
    data = safetensors.torch.save(tensors)
    storage.write(HEAD, data)
    return HeadInfo(file=file_entry(data), scale=head.scale, softcap=head.softcap)


def read_teacher_head(config: TeacherConfig) -> OutputHead:
    """Read the output head from the weight files, in the narrower of the teacher's and the files' dtypes.

    Raises UserError if there is none, or its shape or dtype is wrong.
    """
    model_config = load_model_config(config)
    text_config = model_config.get_text_config()
    with torch.device("meta"):
        model = model_class(model_config).from_config(model_config, trust_remote_code=config.trust_remote_code)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    files = _weight_files(config)
    name = _find(files, names.get(id(head), ""), "weight")
    if name is None and text_config.tie_word_embeddings:
        name = _find(files, names.get(id(embeddings), ""), "weight")
    if name is None:
        raise UserError(
            f"capture.final: no output head among the weights of {config.path}; leave the signal out for this teacher"
        )
    weight = _read(files[name], name)
    bias_name = _find(files, names.get(id(head), ""), "bias") if getattr(head, "bias", None) is not None else None
    bias = None if bias_name is None else _read(files[bias_name], bias_name)[: text_config.vocab_size]
    weight = weight[: text_config.vocab_size]
    if weight.dtype not in FLOATS or weight.shape != (text_config.vocab_size, text_config.hidden_size):
        raise UserError(
            f"capture.final: the output head {name} of {config.path} is {weight.dtype} {tuple(weight.shape)}, wanted a "
            f"float tensor of {text_config.vocab_size} × {text_config.hidden_size}; leave the signal out"
        )
    wanted = getattr(torch, config.dtype)
    if wanted.itemsize < weight.dtype.itemsize:
        weight = weight.to(wanted)
    return OutputHead(weight.contiguous(), bias, *logit_transform(text_config))


def _weight_files(config: TeacherConfig) -> dict[str, str]:
    """The safetensors file of each tensor, by the tensor's name."""
    from transformers.utils import cached_file

    def find(name: str) -> str | None:
        return cached_file(config.path, name, revision=config.revision, _raise_exceptions_for_missing_entries=False)

    if index := find("model.safetensors.index.json"):
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        paths = {shard: find(shard) for shard in set(shards.values())}
        return {name: path for name, shard in shards.items() if (path := paths[shard])}
    if single := find("model.safetensors"):
        with safetensors.safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    return {}


def _find(files: dict[str, str], module: str, parameter: str) -> str | None:
    """The name of a module's tensor in a checkpoint, which may use other prefixes than the model."""
    exact = f"{module}.{parameter}"
    if exact in files:
        return exact
    ending = f".{module.rpartition('.')[2]}.{parameter}"
    found = [name for name in files if f".{name}".endswith(ending)]
    return found[0] if len(found) == 1 else None


def _read(path: str, name: str) -> torch.Tensor:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.get_tensor(name)
