"""The kernel that vLLM's CPU build gets from the plugin: chosen where vLLM has none, and exact."""

from typing import Any

import pytest
import torch

from trainer.quantization.dense_packing import pack
from trainer.quantization.grid import Grid
from trainer.quantization.vllm_plugin import register

pytest.importorskip("vllm")


@pytest.fixture(scope="module")
def choose() -> Any:
    from teacher_cache.engines.vllm_import import import_vllm

    import_vllm()
    from vllm.model_executor.kernels import linear
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("vLLM's build is one for GPUs")
    before = list(linear._POSSIBLE_KERNELS[current_platform._enum])  # with ours, if vLLM has called the entry point
    register()
    register()
    names = [kernel.__name__ for kernel in linear._POSSIBLE_KERNELS[current_platform._enum]]
    assert names.count("UnpackedCPULinearKernel") == 1
    yield linear.choose_mp_linear_kernel
    linear._POSSIBLE_KERNELS[current_platform._enum][:] = before


def config(bits: int, **changes: Any) -> Any:
    from vllm.model_executor.kernels.linear import MPLinearLayerConfig
    from vllm.model_executor.layers.quantization.compressed_tensors.schemes import compressed_tensors_wNa16 as scheme

    settings = {"full_weight_shape": (64, 48), "partition_weight_shape": (64, 48), "group_size": 32}
    kind = scheme.WNA16_SUPPORTED_TYPES_MAP[bits]
    return MPLinearLayerConfig(
        **{**settings, "weight_type": kind, "act_type": torch.bfloat16, "zero_points": False, **changes}
    )


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_kernel_multiplies_by_the_rounded_weights(bits: int, choose: Any) -> None:
    kernel = choose(config(bits))
    assert kernel.__name__ == "UnpackedCPULinearKernel"
    torch.manual_seed(0)
    grid, weight = Grid(bits, 32), torch.randn(48, 64)
    scales = grid.scales(weight).to(torch.bfloat16)
    words = torch.nn.Parameter(pack(grid.quantise(weight, scales), bits), requires_grad=False)
    layer = torch.nn.Module()
    layer.weight_packed, layer.weight_scale = words, torch.nn.Parameter(scales, requires_grad=False)
    loaded = kernel(config(bits), "weight_packed", "weight_scale", "weight_zero_point")
    loaded.process_weights_after_loading(layer)
    x, bias = torch.randn(5, 64, dtype=torch.bfloat16), torch.randn(48, dtype=torch.bfloat16)
    wanted = torch.nn.functional.linear(x, grid.fake_quantise(weight, scales), bias)
    assert torch.equal(loaded.apply_weights(layer, x, bias), wanted)


def test_vllm_keeps_its_own_kernel_for_four_bits_and_zero_points_are_refused(choose: Any) -> None:
    small = {"full_weight_shape": (64, 64), "partition_weight_shape": (64, 64)}
    assert choose(config(4, **small)).__name__ == "CPUWNA16LinearKernel"
    with pytest.raises(ValueError, match="unpacks symmetric groups only"):
        choose(config(3, zero_points=True))
