"""An adapter merged into its base model: one ordinary model folder.

Weights of 4 bits are merged as they were in training: what is written is their values, not those that were quantised,
so the merged model computes what the adapter was trained to.
"""

from pathlib import Path
from typing import Any

import torch

from schemas.cache_config import Dtype
from schemas.errors import UserError
from schemas.train_config import StudentConfig
from teacher_cache.teacher import model_fingerprint
from trainer.adapters.adapter_folder import AdapterRecord, read_adapter
from trainer.adapters.lora_layers import add_lora, check_packages, quantisation, trained_parameters
from trainer.adapters.trained_weights import fill
from trainer.run.final_model import save_final
from trainer.student.build import INIT_FOLDER, load_model

MAX_CARD_BYTES = 1 << 20


def merge_folder(
    adapter: Path, output: Path, base: str | None = None, dtype: Dtype | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Merge the adapter in a folder into its base model and write that to ``output``; returns a summary.

    base: the base model's folder, if it has moved. dtype: of what is written; default: as trained. Raises UserError.
    """
    if output.exists():
        raise UserError(f"{output}: exists; remove it, or name another OUTPUT")
    record, weights = read_adapter(adapter)
    check_packages(record.adapter)
    source = base_folder(adapter, record, base)
    model: Any = load_model(
        source,
        "--base",
        torch.float32,
        trust_remote_code=trust_remote_code,
        quantization=quantisation(record.adapter, torch.float32),
    )
    if record.adapter.base_bits is not None:
        model = model.dequantize(torch.float32)
    add_lora(model, record.adapter, seed=0)
    fill(trained_parameters(model), weights, adapter)
    layers = merge_layers(model)
    settings = StudentConfig(checkpoint=str(source), dtype=dtype or record.dtype, trust_remote_code=trust_remote_code)
    save_final(model, settings, source, output, merged_card(adapter))
    return {
        "output": str(output),
        "base": str(source),
        "adapter": str(adapter),
        "merged_layers": layers,
        "dtype": settings.dtype,
        "parameters": model.num_parameters(),
    }


def base_folder(adapter: Path, record: AdapterRecord, base: str | None) -> Path:
    """The base model's folder: as given, as recorded, or beside the adapter. Raises UserError if it is another one."""
    places = [Path(record.base), adapter.absolute().parent / INIT_FOLDER] if base is None else [Path(base)]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        wanted = " or ".join(map(str, places))
        raise UserError(f"{adapter}: its base model is not at {wanted}; name its folder with --base")
    fingerprint = model_fingerprint(str(found), key="--base")
    if fingerprint != record.base_fingerprint:
        raise UserError(
            f"--base: {found}: has the fingerprint {fingerprint[:12]}…, the adapter was trained on "
            f"{record.base_fingerprint[:12]}…; name the folder of that model"
        )
    return found


def merge_layers(model: "torch.nn.Module") -> int:
    """Add the adapter to the weights beside it and remove its layers; returns their number."""
    from peft.tuners.lora import LoraLayer

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, layer in found:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    vars(model)["_hf_peft_config_loaded"] = False  # else transformers saves an adapter
    vars(model).pop("peft_config", None)
    return len(found)


def merged_card(adapter: Path) -> str:
    """The adapter's card, as that of a whole model."""
    path = adapter / "README.md"
    if not path.is_file() or path.stat().st_size > MAX_CARD_BYTES:
        return "---\nlibrary_name: transformers\n---\n# Student with its adapter merged\n"
    card = path.read_text(encoding="utf-8", errors="replace")
    return card.replace("library_name: peft", "library_name: transformers", 1)
