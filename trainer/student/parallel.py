"""Training a student that is spread over processes: FSDP2's settings, and weights read back from a sharded checkpoint.

Each decoder layer is gathered for its forward pass, freed, and gathered again for its backward pass (FULL_SHARD of
FSDP1), the next one while the present one runs: FSDP2 prefetches without being asked. Embeddings, final norm and output
head stay whole from the forward to the end of the backward pass, which is what lets the losses apply the head outside
of the module (``losses/lean.py``): its gradient is averaged over processes like any other.

A sharded checkpoint is a folder of ``torch.distributed.checkpoint``: any number of processes reads it, one as well.
"""

import atexit
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch

from schemas.errors import UserError
from schemas.train_config import LoopConfig
from teacher_cache.decoder_layers import find_decoder

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, TrainingArguments

T = TypeVar("T")
SHARDED_WEIGHTS = "pytorch_model_fsdp_0"  # what accelerate calls them, in a checkpoint folder


def backend(loop: LoopConfig) -> str | None:
    """The process groups' backend; None leaves the choice to transformers. Sharded checkpoints need one for the CPU."""
    return "cuda:nccl,cpu:gloo" if loop.parallel == "fsdp" and torch.cuda.is_available() else None


def fsdp_settings(loop: LoopConfig) -> dict[str, Any]:
    """What ``TrainingArguments`` are given for ``loop.parallel``. Raises UserError for FSDP without torchrun."""
    if loop.parallel != "fsdp":
        return {}
    if "RANK" not in os.environ:
        raise UserError(
            "loop.parallel: fsdp shards the student over processes that torchrun starts; start the command with "
            "`torchrun --nproc-per-node N --no-python`, where 1 will do, or set loop.parallel to ddp"
        )
    config = {
        "version": 2,
        "reshard_after_forward": True,
        "cpu_offload": loop.cpu_offload and torch.cuda.is_available(),  # from CPUs there is nowhere to go
        "cpu_ram_efficient_loading": True,  # one process of a machine reads the weights
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    each_micro_batch = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}  # or gradients would pile up whole
    return {"fsdp": True, "fsdp_config": config, "accelerator_config": each_micro_batch}


def use_fsdp(arguments: "TrainingArguments") -> None:
    """Ready transformers and accelerate for a sharded student, before it is loaded."""
    from accelerate.utils import enable_fsdp_ram_efficient_loading
    from torch.distributed.fsdp import MixedPrecisionPolicy

    enable_fsdp_ram_efficient_loading()
    if arguments.bf16:  # products in bfloat16; gradients are added up over processes in float32
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy


def shard_on_cpus(accelerator: "Accelerator", arguments: "TrainingArguments") -> None:
    """Make accelerate shard on CPUs too, where it would ignore the settings and wrap the student whole."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    if arguments.bf16:
        plugin.set_mixed_precision("bf16")
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def load_weights(student: "PreTrainedModel", checkpoint: Path) -> None:
    """Give ``student``, which is whole, the weights of a sharded checkpoint; in this process alone."""
    from torch.distributed.checkpoint import load

    state = {"model": student.state_dict()}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # one process is what is meant
        load(state, checkpoint_id=checkpoint / SHARDED_WEIGHTS, no_dist=True)
    student.load_state_dict(state["model"])


def from_first(compute: Callable[[], T]) -> T:
    """What the first process computes, in every process; the others wait."""
    if not torch.distributed.is_initialized():
        return compute()
    values: list[Any] = [compute() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def from_all(value: T) -> list[T]:
    """What each process has, in order, in every process."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def leave_together(status: int) -> NoReturn:
    """End this process; one of several, once every one is done: the first one writes the final model.

    torchrun waits a few minutes only for one that is behind.
    """
    if not torch.distributed.is_initialized():
        sys.exit(status)
    torch.distributed.barrier()
    atexit._run_exitfuncs()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of gloo drops a collective's tensors a while after it is done, and takes the GIL for it. DDP keeps those
    # threads alive; one that waits for the GIL while the interpreter is taken down aborts the process: it stays up.
    os._exit(status)


def compile_layers(student: "PreTrainedModel") -> None:
    """Compile every decoder layer's own forward pass; hooks on the layer stay outside."""
    decoder = find_decoder(student, student.config.get_text_config().num_hidden_layers, "student")
    for layer in decoder.layers:
        layer.forward = torch.compile(layer.forward)
