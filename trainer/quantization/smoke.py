"""A smoke generation: every written folder must say what the folded one says, in transformers and in vLLM.

Each engine is compared with itself, since two engines differ by more in bfloat16 than two files of one model may. So do
two kernels that add in another order: a logit of 20 has steps of 0.125. On CPUs weights are therefore unpacked, and the
product is that of the 16-bit copy; on GPUs vLLM's kernels are held to ``MEAN_DIFFERENCE``.
"""

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch

from schemas.errors import UserError
from teacher_cache.logs import shows_details
from teacher_cache.text import reason_of
from trainer.quantization.model_folders import MIN_READER

logger = logging.getLogger(__name__)
NEW_TOKENS = 16
MAX_DIFFERENCE = 1e-3  # nats
MEAN_DIFFERENCE = 0.3  # nats, of other kernels: 0.08 was measured, wrong weights give more than 1


class Said(NamedTuple):
    """One greedy continuation, and log-probabilities."""

    tokens: list[int]
    log_probabilities: torch.Tensor  # float32: of whole rows in transformers, of the text's own tokens in vLLM


def check_readers() -> None:
    """Raise UserError unless the installed compressed-tensors reads densely packed integers."""
    try:
        found = version("compressed-tensors")
    except PackageNotFoundError:
        found = "none"
    if found == "none" or tuple(map(int, found.split(".")[:2])) < tuple(map(int, MIN_READER.split("."))):
        raise UserError(
            f"compressed-tensors: {found} is installed, which does not read 3-bit files; to check what is written, pip "
            f"install 'compressed-tensors>={MIN_READER}', else add --no-check"
        )


def has_vllm() -> bool:
    """Whether vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None


def check_folders(
    folded: Path, packed: dict[str, Path], ids: Sequence[int], has_experts: bool, trust_remote_code: bool
) -> dict[str, dict[str, float]]:
    """Compare the folders of ``packed`` with ``folded`` in each engine that is installed.

    Returns the largest difference of log-probabilities by engine and format. Raises UserError for one above
    ``MAX_DIFFERENCE``, another text, or a folder that an engine cannot load.
    """
    engines = {"transformers": in_transformers}
    if has_vllm():
        if has_experts and not torch.cuda.is_available():
            logger.warning("not checked in vLLM: on CPUs it runs no quantised experts; use --format folded there")
        else:
            engines["vllm"] = in_vllm
    differences: dict[str, dict[str, float]] = {}
    for engine, say in engines.items():
        wanted = say(folded, ids, trust_remote_code)
        differences[engine] = {}
        for name, folder in packed.items():
            said = say(folder, ids, trust_remote_code)
            other_kernels = engine == "vllm" and torch.cuda.is_available()
            difference = compare(said, wanted, f"{name} in {engine}", len(ids) if other_kernels else None)
            differences[engine][name] = difference
    return differences


def compare(said: Said, wanted: Said, what: str, prompt: int | None) -> float:
    """The largest difference of log-probabilities. Raises UserError if it, or the text, is not what it must be.

    prompt: its tokens, if the two were computed by other kernels; then the text may differ, and only it is compared.
    """
    other_kernels = prompt is not None
    common = len(wanted.log_probabilities) if prompt is None else prompt - 1
    away = (said.log_probabilities[:common] - wanted.log_probabilities[:common]).abs()
    same_text = said.tokens == wanted.tokens
    fits = float(away.mean()) <= MEAN_DIFFERENCE if other_kernels else same_text and float(away.max()) <= MAX_DIFFERENCE
    if not fits:
        raise UserError(
            f"{what}: log-probabilities differ from those of the folded copy by {float(away.max()):.2g}, wanted at "
            f"most {MEAN_DIFFERENCE if other_kernels else MAX_DIFFERENCE}, and the greedy texts are "
            f"{'equal' if same_text else 'different'}; nothing was written"
        )
    return float(away.max())


@torch.no_grad()
def in_transformers(folder: Path, ids: Sequence[int], trust_remote_code: bool) -> Said:
    """Run the model in ``folder`` on the CPU. Raises UserError if it cannot be loaded."""
    from transformers import AutoModelForCausalLM

    prompt = torch.tensor([list(ids)])
    with nullcontext() if shows_details() else redirect_stderr(StringIO()):  # compressed-tensors' own bars
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", trust_remote_code=trust_remote_code, local_files_only=True
            )
            rows = model(input_ids=prompt, use_cache=False).logits[0].float().log_softmax(dim=-1)
        except Exception as error:  # third-party readers can raise anything
            raise UserError(f"{folder.name}: transformers cannot load what was written{reason_of(error)}") from error
    greedy = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS
    )
    return Said(greedy[0, len(ids) :].tolist(), rows)


def in_vllm(folder: Path, ids: Sequence[int], trust_remote_code: bool, own_kernel: bool = False) -> Said:
    """Run the model in ``folder`` in vLLM, in a process of its own. Raises UserError if it cannot be run.

    own_kernel: on CPUs, multiply 4-bit weights with vLLM's kernel.
    """
    wanted = {
        "folder": str(folder),
        "ids": list(ids),
        "new_tokens": NEW_TOKENS,
        "trust_remote_code": trust_remote_code,
        "own_kernel": own_kernel,
    }
    command = [sys.executable, "-m", "trainer.quantization.vllm_smoke"]
    done = subprocess.run(command, input=json.dumps(wanted), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        logger.debug("%s", done.stderr)
        raise UserError(
            f"{folder.name}: vLLM cannot run what was written: {reason}; --no-check skips this, "
            "quantization.check: false in training"
        )
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return Said(said["tokens"], torch.tensor(said["log_probabilities"]))
