"""LoRA layers in a student, and its frozen weights.

``peft`` puts its layers into the model in place of linear layers; the model keeps its class, so that what finds decoder
layers, heads and down projections in a student finds them in one with an adapter.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from schemas.errors import UserError
from schemas.train_config import AdapterConfig, TrainConfig
from teacher_cache.decoder_layers import find_decoder
from trainer.quantization.sites import TARGETS
from trainer.student.build import load_student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FFN = ("gate_proj", "up_proj", "down_proj")
PACKS = "support_avx512bf16_for_cpu"  # of a 4-bit layer: whether it changes its weights' layout when it evaluates
INSTALL = "pip install 'offline-distillation[adapters]'"


def check_packages(settings: AdapterConfig) -> None:
    """Raise UserError if a package that the adapter needs is not installed."""
    for package in ("peft", "bitsandbytes")[: 2 if settings.base_bits is not None else 1]:
        if find_spec(package) is None:
            raise UserError(f"student.adapter: needs {package}, which is not installed: {INSTALL}")


def load_frozen(folder: Path, config: TrainConfig, bf16: bool) -> "PreTrainedModel":
    """Load the student whose weights stay as they are, in 16 bits where it is to be bfloat16. Raises UserError.

    Sharded weights are in float32, as FSDP gathers a layer's weights in one type. bf16: how it will run.
    """
    adapter = config.student.adapter
    assert adapter is not None
    sharded = config.loop.parallel == "fsdp"
    dtype = torch.bfloat16 if config.student.dtype == "bfloat16" and not sharded else torch.float32
    four_bits = quantisation(adapter, torch.bfloat16 if bf16 else torch.float32)
    student = load_student(folder, config.student, config.data.packing, bf16, dtype, four_bits)
    for module in student.modules():
        if PACKS in vars(module):  # bitsandbytes would round the scales again at the first validation
            vars(module)[PACKS] = False
    return student


def quantisation(settings: AdapterConfig, compute: torch.dtype) -> Any:
    """transformers' settings for frozen weights of few bits; None: they are not quantised. compute: of products."""
    if settings.base_bits is None:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def add_lora(student: "PreTrainedModel", settings: AdapterConfig, seed: int) -> None:
    """Freeze the student and add an adapter in float32 that changes nothing yet. seed: of its random half.

    Raises UserError for targets that the student does not have, or that are experts in one tensor.
    """
    from peft import LoraConfig

    layers = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_names(student, settings),
        use_rslora=settings.rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student.add_adapter(layers)
    for weight in trained_parameters(student).values():
        weight.data = weight.data.float()


def target_names(student: "PreTrainedModel", settings: AdapterConfig) -> list[str]:
    """Names of the linear layers that get an adapter. Raises UserError as ``add_lora``."""
    decoder = find_decoder(student, student.config.get_text_config().num_hidden_layers, "student")
    wanted: list[str] = [*(settings.targets or TARGETS)]
    modules = list(decoder.layers.named_modules())
    fused = [module for _, module in modules if isinstance(getattr(module, "down_proj", None), torch.nn.Parameter)]
    if fused and set(wanted) & set(FFN):
        attention = [name for name in wanted if name not in FFN] or ["q_proj", "k_proj", "v_proj", "o_proj"]
        raise UserError(
            f"student.adapter.targets: the experts of a {type(student).__name__} are one tensor "
            f"({type(fused[0]).__name__}), to which no adapter is added; set it to {attention}"
        )
    found = {name.rpartition(".")[2] for name, module in modules if isinstance(module, torch.nn.Linear)}
    missing = [name for name in wanted if name not in found]
    if settings.targets is not None and missing:
        raise UserError(
            f"student.adapter.targets: a {type(student).__name__} has no linear layer {missing[0]}; it has "
            f"{', '.join(sorted(found))}"
        )
    names = [name for name in wanted if name in found]
    if not names:
        raise UserError(
            f"student.adapter: a {type(student).__name__} has none of the linear layers {', '.join(TARGETS)}, only "
            f"{', '.join(sorted(found)) or 'none'}; leave student.adapter out"
        )
    return names


def trained_parameters(student: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """What is trained of a student with an adapter, by name: the adapter, and the maps of losses."""
    return {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
