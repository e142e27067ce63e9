"""``python -m benchmarks.gpu_check`` (``make gpu-check``): whether this product is correct and fast on this GPU."""
