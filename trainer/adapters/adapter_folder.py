"""The folder of an adapter: PEFT's own two files, a card, the tokenizer, and a record of the base model.

It is written from a checkpoint; no model is in memory. Of a folder from others, only the record and the tensors are
read when it is merged: PEFT's configuration may name modules to import.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import save_file

from schemas.cache_config import Dtype
from schemas.errors import UserError
from schemas.load import parse_json
from schemas.strict import Sha256, Strict
from schemas.train_config import AdapterConfig, StudentConfig
from trainer.adapters.trained_weights import stored_weights
from trainer.quantization.sites import TARGETS
from trainer.run.final_model import replace_folder
from trainer.run.output_names import ADAPTER_CONFIG
from trainer.student.student_tokenizer import copy_tokenizer

RECORD_FILE = "distill_adapter.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of PEFT's names in files
LORA = {".lora_A.default.weight": ".lora_A.weight", ".lora_B.default.weight": ".lora_B.weight"}  # in a model, in a file
MAX_RECORD_BYTES = 1 << 20


class AdapterRecord(Strict):
    """``distill_adapter.json``: what the adapter was trained on and with."""

    format: int = Field(1, ge=1, le=1)
    base: str = Field(description="Folder of the model whose weights were frozen; it may have moved.")
    base_fingerprint: Sha256
    dtype: Dtype = Field(description="Data type of the merged model.")
    adapter: AdapterConfig = Field(description="As configured, with the targets that were found.")

    @classmethod
    def of(cls, student: StudentConfig, trained: Iterable[str], base: str, fingerprint: str) -> "AdapterRecord":
        """The record of an adapter; trained: names of its weights in the student."""
        assert student.adapter is not None
        layers = {name.split(".lora_A.")[0].rpartition(".")[2] for name in trained if ".lora_A." in name}
        found = student.adapter.model_copy(update={"targets": [name for name in TARGETS if name in layers]})
        return cls(base=base, base_fingerprint=fingerprint, dtype=student.dtype, adapter=found)


def write_adapter(
    folder: Path, trained: dict[str, torch.Tensor], record: AdapterRecord, tokenizer: Path, trust: bool, card: str
) -> None:
    """Write the adapter in ``trained``, weights by the names in a student, to ``folder``, atomically.

    tokenizer: the folder that has it; trust: copy its code, too.
    """
    from peft import LoraConfig

    weights = {
        PREFIX + name.removesuffix(end) + LORA[end]: weight.contiguous()
        for name, weight in trained.items()
        for end in LORA
        if name.endswith(end)
    }
    settings = record.adapter
    layers = LoraConfig(
        base_model_name_or_path=record.base,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[*(settings.targets or ())],
        use_rslora=settings.rslora,
        bias="none",
        task_type="CAUSAL_LM",
        inference_mode=True,
    )

    def write(unfinished: Path) -> None:
        layers.save_pretrained(str(unfinished))
        config = unfinished / ADAPTER_CONFIG
        tree = json.loads(config.read_text(encoding="utf-8")) | {
            "target_modules": settings.targets
        }  # PEFT's order varies
        config.write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        save_file(weights, unfinished / WEIGHTS_FILE, metadata={"format": "pt"})
        copy_tokenizer(tokenizer, unfinished, trust)
        (unfinished / RECORD_FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (unfinished / "README.md").write_text(card, encoding="utf-8")

    replace_folder(folder, write)


def read_adapter(folder: Path) -> tuple[AdapterRecord, dict[str, torch.Tensor]]:
    """The record of an adapter and its weights, by the names in a student. Raises UserError."""
    path = folder / RECORD_FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: has no {RECORD_FILE}, which train-student writes beside an adapter; merge other adapters with "
            "PEFT's merge_and_unload"
        )
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise UserError(f"{path}: larger than {MAX_RECORD_BYTES} bytes")
    record = parse_json(AdapterRecord, path.read_bytes(), where=str(path))
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"{folder}: has no {WEIGHTS_FILE}; copy the folder as a whole")
    try:
        stored = stored_weights(folder / WEIGHTS_FILE)
    except Exception as error:  # safetensors raises its own class
        raise UserError(f"{folder / WEIGHTS_FILE}: cannot be read: {error}") from None
    ends = {there: here for here, there in LORA.items()}
    weights = {}
    for name, weight in stored.items():
        end = next((end for end in ends if name.endswith(end)), None)
        if end is None or not name.startswith(PREFIX):
            raise UserError(f"{folder / WEIGHTS_FILE}: {name}: not the name of a weight of a LoRA adapter")
        _check_weight(f"{folder / WEIGHTS_FILE}: {name}", weight, end == ".lora_A.weight", record.adapter.r)
        weights[name.removeprefix(PREFIX).removesuffix(end) + ends[end]] = weight
    return record, weights


def _check_weight(where: str, weight: torch.Tensor, is_first: bool, rank: int) -> None:
    """Raise UserError unless this is a finite matrix of the rank, in which layers are made before they are filled."""
    found = tuple(weight.shape)
    if weight.ndim != 2 or found[0 if is_first else 1] != rank:
        raise UserError(f"{where}: has the shape {found}, wanted a matrix of rank {rank}, as {RECORD_FILE} says")
    if not weight.is_floating_point() or not weight.isfinite().all():
        raise UserError(f"{where}: wanted finite floating-point values; copy the adapter from its source again")
