"""A smoke generation: every written folder must say what the folded one says, in transformers and in vLLM.

Each engine is compared with itself, since two engines differ by more in bfloat16 than two files of one model may.
"""

import importlib.util
import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, redirect_stderr
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from schemas.errors import UserError
from teacher_cache.logs import shows_details
from teacher_cache.text import reason_of
from trainer.quantization.model_folders import MIN_READER

logger = logging.getLogger(__name__)
PROMPT, NEW_TOKENS = 32, 16
MAX_DIFFERENCE = 1e-3  # nats


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


def check_folders(
    folded: Path, packed: dict[str, Path], ids_S: np.ndarray, has_experts: bool, trust_remote_code: bool
) -> dict[str, dict[str, float]]:
    """Compare the folders of ``packed`` with ``folded`` in each engine that is installed.

    Returns the largest difference of log-probabilities by engine and format. Raises UserError for one above
    ``MAX_DIFFERENCE``, another text, or a folder that an engine cannot load.
    """
    ids = ids_S[:PROMPT].tolist()
    engines = {"transformers": in_transformers}
    if importlib.util.find_spec("vllm") is not None:
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
            difference = float((said.log_probabilities - wanted.log_probabilities).abs().max())
            differences[engine][name] = difference
            if said.tokens != wanted.tokens or not difference <= MAX_DIFFERENCE:
                raise UserError(
                    f"{name} in {engine}: log-probabilities differ from those of the folded copy by {difference:.2g}, "
                    f"wanted at most {MAX_DIFFERENCE}, and the greedy texts are "
                    f"{'equal' if said.tokens == wanted.tokens else 'different'}; nothing was written"
                )
    return differences


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


def in_vllm(folder: Path, ids: Sequence[int], trust_remote_code: bool) -> Said:
    """Run the model in ``folder`` in vLLM, in a process of its own. Raises UserError if it cannot be loaded."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            running = pool.submit(_vllm_says, str(folder), list(ids), trust_remote_code, not shows_details())
            tokens, log_probabilities = running.result()
        except Exception as error:  # a process that died, or what vLLM raised
            raise UserError(f"{folder.name}: vLLM cannot run what was written{reason_of(error)}; --no-check") from error
    return Said(tokens, torch.tensor(log_probabilities))


def _vllm_says(folder: str, ids: list[int], trust_remote_code: bool, is_quiet: bool) -> tuple[list[int], list[float]]:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if is_quiet:  # libraries write to the descriptors themselves
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    import vllm
    from vllm.inputs import TokensPrompt

    from trainer.quantization.vllm_plugin import register

    register()  # as its entry point does where the project is installed
    engine = vllm.LLM(
        model=folder,
        trust_remote_code=trust_remote_code,
        max_model_len=PROMPT + NEW_TOKENS,
        max_num_seqs=1,
        kv_cache_memory_bytes=1 << 28,
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        use_tqdm_on_load=False,
    )
    settings = vllm.SamplingParams(
        max_tokens=NEW_TOKENS, temperature=0.0, detokenize=False, logprobs=0, prompt_logprobs=0
    )
    (request,) = engine.generate([TokensPrompt(prompt_token_ids=ids)], settings, use_tqdm=False)
    (reply,) = request.outputs
    rows: list[Any] = [*list(request.prompt_logprobs or [])[1:], *list(reply.logprobs or [])]
    tokens = [*ids[1:], *reply.token_ids]
    return list(reply.token_ids), [row[token].logprob for row, token in zip(rows, tokens, strict=True)]
