"""Several processes: FSDP2 settings, sharded checkpoints, collectives, a clean exit; and compiled layers.

Each decoder layer is gathered for its forward pass, freed, and gathered again for its backward pass (FSDP1's
FULL_SHARD); FSDP2 prefetches the next layer by default. Embeddings, final norm and output head stay gathered from the
forward to the end of the backward pass, so the losses can apply the head outside the module (``losses/lean.py``) and
its gradient is averaged over ranks like any other.

A sharded checkpoint is a ``torch.distributed.checkpoint`` folder, readable by any number of ranks, including one.
"""

import atexit
import gc
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
SHARDED_WEIGHTS = "pytorch_model_fsdp_0"  # accelerate's name for them in a checkpoint folder


def backend(loop: LoopConfig) -> str | None:
    """Return the process group backend; None: transformers' choice. Sharded checkpoints also need a CPU backend."""
    return "cuda:nccl,cpu:gloo" if loop.parallel == "fsdp" and torch.cuda.is_available() else None


def fsdp_settings(loop: LoopConfig) -> dict[str, Any]:
    """Return the ``TrainingArguments`` of ``loop.parallel``. Raises UserError for FSDP without torchrun."""
    if loop.parallel != "fsdp":
        return {}
    if "RANK" not in os.environ:
        raise UserError(
            "loop.parallel: fsdp shards the student over processes that torchrun starts; prefix the command with "
            "`torchrun --nproc-per-node N --no-python` (N may be 1), or set loop.parallel to ddp"
        )
    config = {
        "version": 2,
        "reshard_after_forward": True,
        "cpu_offload": loop.cpu_offload and torch.cuda.is_available(),  # on CPUs there is nothing to offload
        "cpu_ram_efficient_loading": True,  # one process per machine reads the weights
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    each_micro_batch = {
        "gradient_accumulation_kwargs": {"sync_each_batch": True}
    }  # else unsharded gradients accumulate
    return {"fsdp": True, "fsdp_config": config, "accelerator_config": each_micro_batch}


def use_fsdp(arguments: "TrainingArguments") -> None:
    """Prepare transformers and accelerate for a sharded student; call before it is loaded."""
    from accelerate.utils import enable_fsdp_ram_efficient_loading
    from torch.distributed.fsdp import MixedPrecisionPolicy

    enable_fsdp_ram_efficient_loading()
    if arguments.bf16:  # matrix products in bfloat16, gradient reduction in float32
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy


def shard_on_cpus(accelerator: "Accelerator", arguments: "TrainingArguments") -> None:
    """Make accelerate shard on CPUs too, where it ignores the FSDP settings and falls back to DDP."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    if arguments.bf16:
        plugin.set_mixed_precision("bf16")
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def free_together() -> None:
    """Free what nothing refers to any more on every rank, reference cycles of a trainer included; collective."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    from_all(None)


def load_weights(student: "PreTrainedModel", checkpoint: Path) -> None:
    """Load a sharded checkpoint's weights into the unsharded ``student``, in its dtype; no other rank takes part."""
    from torch.distributed.checkpoint import load

    state = {"model": student.state_dict()}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # it warns about running without other ranks
        load(state, checkpoint_id=checkpoint / SHARDED_WEIGHTS, no_dist=True)
    student.load_state_dict(state["model"])


def from_first(compute: Callable[[], T]) -> T:
    """Compute on the first rank, return the result on every rank; collective."""
    if not torch.distributed.is_initialized():
        return compute()
    values: list[Any] = [compute() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def from_all(value: T) -> list[T]:
    """Return every rank's value, in rank order, on every rank; collective."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def leave_together(status: int) -> NoReturn:
    """Exit with ``status``; with several ranks, once all are done: rank 0 may still be writing the final model.

    torchrun would kill a rank that is still running a few minutes after another has left.
    """
    if not torch.distributed.is_initialized():
        sys.exit(status)
    torch.distributed.barrier()
    atexit._run_exitfuncs()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # A gloo thread frees a collective's tensors some time after it is done, and needs the GIL for that. DDP keeps those
    # threads alive, and one that waits for the GIL during interpreter shutdown aborts the process: skip the shutdown.
    os._exit(status)


def compile_layers(student: "PreTrainedModel") -> None:
    """Compile the forward method of every decoder layer; hooks on the layers stay outside the compiled code."""
    decoder = find_decoder(student, student.config.get_text_config().num_hidden_layers, "student")
    for layer in decoder.layers:
        layer.forward = torch.compile(layer.forward)
