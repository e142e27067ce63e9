"""vLLM plugin: run weights of any width on CPUs, where vLLM itself has kernels for 4 bits only.

vLLM calls ``register`` in each of its processes, through the entry point ``vllm.general_plugins``. The weights are
unpacked once, at load: memory and speed are those of the 16-bit model, and so are the results.
"""


def register() -> None:
    """Offer the kernel to vLLM on CPUs; of several calls, the first counts."""
    import torch
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel, MPLinearLayerConfig
    from vllm.platforms import PlatformEnum

    from trainer.quantization.dense_packing import unpack
    from trainer.quantization.grid import Grid

    class UnpackedCPULinearKernel(MPLinearKernel):
        """Dequantises at load."""

        @classmethod
        def get_min_capability(cls) -> int:
            return -1

        @classmethod
        def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
            if c.zero_points or c.group_size <= 0:
                return False, "unpacks symmetric groups only"
            return True, None

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            words, scales_OG, _ = self._get_weight_params(layer)
            inputs = self.config.partition_weight_shape[0]
            grid = Grid(self.config.weight_type.size_bits, self.config.group_size)
            weight_OI = grid.dequantise(unpack(words.data, grid.bits, inputs), scales_OG.data)
            self._transform_param(layer, self.w_q_name, lambda _: weight_OI.to(self.config.act_type))

        def apply_weights(
            self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            return torch.nn.functional.linear(x, self._get_weight_params(layer)[0], bias)

    kernels = linear._POSSIBLE_KERNELS.get(PlatformEnum.CPU, [])
    if all(kernel.__name__ != UnpackedCPULinearKernel.__name__ for kernel in kernels):
        linear.register_linear_kernel(UnpackedCPULinearKernel, PlatformEnum.CPU)
