"""Data flows one way: what a package may import."""

import subprocess
import sys

import pytest

FORBIDDEN = {
    "schemas.load": ("teacher_cache", "trainer", "tools", "torch", "transformers", "vllm"),
    "teacher_cache.cli": ("trainer", "tools", "torch", "transformers", "vllm"),
    "teacher_cache.shards.reader": ("trainer", "tools", "torch", "transformers", "vllm", "teacher_cache.engines"),
    "teacher_cache.api": ("trainer", "tools", "torch", "transformers", "vllm", "teacher_cache.engines"),
    "teacher_cache.job": ("trainer", "tools", "vllm"),
    "trainer.cli": ("tools", "torch", "transformers", "vllm", "teacher_cache.engines"),
    "trainer.distiller": ("tools", "vllm", "teacher_cache.engines", "teacher_cache.job", "teacher_cache.corpus"),
    "tools.cli": ("torch", "transformers", "vllm"),
}


@pytest.mark.parametrize("module", FORBIDDEN)
def test_importing_a_module_does_not_load(module: str) -> None:
    program = f"import sys, {module}; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    wrong = [name for name in loaded for bad in FORBIDDEN[module] if name == bad or name.startswith(f"{bad}.")]
    assert not wrong
