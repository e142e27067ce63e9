from pathlib import Path

import pytest

from teacher_cache import gpu_driver
from teacher_cache.gpu_driver import driver_problem, driver_version

PROC = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
CUDA_13 = {"cuda": "13.0", "torch": "2.13.0"}


@pytest.mark.parametrize(
    ("facts", "parts"),
    [
        (
            {"driver": "550.54.15"},
            ["the NVIDIA driver is 550.54.15", "CUDA 13.0", "needs driver 580 or newer: upgrade"],
        ),
        ({"driver": "515.1", "cuda": "12.8"}, ["CUDA 12.8", "driver 525 or newer"]),
        ({"driver": None}, ["no NVIDIA driver answers", "driver 580 or newer: install one"]),
        ({"driver": "580.95.05"}, ["PyTorch finds no GPU", "580.95.05 is new enough", "reboot"]),
        ({"driver": "580.95.05", "visible": ""}, ["CUDA_VISIBLE_DEVICES is empty"]),
        ({"driver": "580.95.05", "device": False}, ["/dev/nvidia0 is missing", "--gpus all"]),
        ({"driver": "580.95.05", "cuda": None, "torch": "2.13.0+cpu"}, ["2.13.0+cpu is a CPU build", "LOCK=gpu"]),
        ({"driver": "580.1", "cuda": "14.0"}, ["580.1 is new enough for CUDA 14.0"]),
    ],
)
def test_a_gpu_that_is_not_seen_has_a_reason_and_advice(facts: dict, parts: list[str]) -> None:
    found = driver_problem(**{"available": False, "device": True, **CUDA_13, **facts})
    assert found is not None
    assert "\n" not in found
    for part in parts:
        assert part in found


def test_there_is_no_problem_with_a_visible_gpu_or_without_one() -> None:
    assert driver_problem(available=True, driver="580.95.05", device=True, **CUDA_13) is None
    assert driver_problem(available=False, driver=None, device=False, **CUDA_13) is None


def test_the_drivers_version_is_read_from_the_kernel_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_driver, "VERSION_FILE", tmp_path / "version")
    (tmp_path / "version").write_text(PROC)
    assert driver_version() == "580.95.05"
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 2024")
    assert driver_version() == "470.256.02"


@pytest.mark.parametrize(
    ("said", "expected"), [("550.54.15\\n550.54.15\\n", "550.54.15"), ("No devices were found", None), ("", None)]
)
def test_the_drivers_version_is_asked_of_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: str | None
) -> None:
    monkeypatch.setattr(gpu_driver, "VERSION_FILE", tmp_path / "version")
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert driver_version() == expected


def test_without_nvidia_smi_there_is_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_driver, "VERSION_FILE", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_version() is None
