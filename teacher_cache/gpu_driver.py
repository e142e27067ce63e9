"""Check that the NVIDIA driver is new enough for the installed PyTorch: ``python -m teacher_cache.gpu_driver``.

PyTorch gives no reason when it finds no GPU; the common one is a driver that is older than the CUDA version of the
build. Sources: CUDA's release notes, tables "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version
Compatibility".
"""

import os
import re
import subprocess
from pathlib import Path

OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}  # first part of the driver's version, by the first part of CUDA's
VERSION_FILE = Path("/proc/driver/nvidia/version")
DEVICE = Path("/dev/nvidia0")


def driver_version() -> str | None:
    """Version of the NVIDIA driver, such as "580.95.05"; None if there is none."""
    try:
        found = re.search(r"Module\b.*?\s(\d+\.\d[\d.]*)\s", VERSION_FILE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    if found:
        return found[1]
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said and re.fullmatch(r"\d+(\.\d+)+", said[0]) else None


def driver_problem(
    available: bool, driver: str | None, device: bool, cuda: str | None, torch: str, visible: str | None = None
) -> str | None:
    """Why PyTorch does not see a GPU that is there, and what to do; None if it does, or if there is none.

    available: ``torch.cuda.is_available()``. driver: as of ``driver_version``. device: whether DEVICE exists. cuda:
    ``torch.version.cuda``, None for a CPU build. torch: version of PyTorch. visible: ``CUDA_VISIBLE_DEVICES``.
    """
    if available or (driver is None and not device):
        return None
    if cuda is None:
        return (
            f"PyTorch {torch} is a CPU build and does not use the NVIDIA GPU of this machine; install the CUDA build: "
            "make setup LOCK=gpu, without TORCH_INDEX"
        )
    wanted = OLDEST_DRIVERS.get(int(cuda.partition(".")[0]), max(OLDEST_DRIVERS.values()))
    needs = f"PyTorch {torch} is built for CUDA {cuda}, which needs driver {wanted} or newer"
    if driver is None:
        return f"no NVIDIA driver answers, although there is a GPU; {needs}: install one"
    if int(driver.partition(".")[0]) < wanted:
        return f"the NVIDIA driver is {driver}; {needs}: upgrade the driver"
    if visible == "":
        reason = "CUDA_VISIBLE_DEVICES is empty: unset it"
    elif not device:
        reason = f"{DEVICE} is missing: start the container with access to GPUs (docker run --gpus all)"
    else:
        reason = "reboot if the driver was upgraded since the last start"
    return f"PyTorch finds no GPU, although driver {driver} is new enough for CUDA {cuda}; {reason}"


def found_problem() -> str | None:
    """``driver_problem`` of this machine and process."""
    import torch

    available, visible = torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return driver_problem(available, driver_version(), DEVICE.exists(), torch.version.cuda, torch.__version__, visible)


def main() -> None:
    """Print a warning if PyTorch does not see the GPU of this machine."""
    if (problem := found_problem()) is not None:
        print(f"warning: {problem}")


if __name__ == "__main__":
    main()
