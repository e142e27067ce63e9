"""Placeholders make modules that import torchvision importable; transformers still knows that it is missing."""

import importlib.metadata
import subprocess
import sys

import pytest

PROGRAM = """
import transformers
from teacher_cache.engines.text_only import install_placeholders
assert install_placeholders() and install_placeholders()
from transformers.utils import is_torchvision_available
assert not is_torchvision_available()
from torchvision.transforms.v2 import functional as F
from torchvision.transforms import InterpolationMode
assert InterpolationMode.BICUBIC is not None
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
try:
    F.resize(1)
except ImportError as error:
    print(error)
"""


INSTALLED = any(one.metadata["Name"] == "torchvision" for one in importlib.metadata.distributions())


@pytest.mark.skipif(INSTALLED, reason="torchvision is installed")
def test_placeholders_install_placeholders_for_torchvision() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torchvision is not installed: images cannot be processed"
