"""Run lm-eval in this process, without a network, and turn its samples into items."""

import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_cell import MatrixItem, Measure
from schemas.matrix_config import HarnessTask
from trainer.matrix.item_means import mean_of
from trainer.matrix.task_kind import CellResult

SEED = 1234  # of the choice of worked examples
SHOWN = 600  # characters of a prompt, whose end is shown, and of an answer
SHARES = ("acc", "acc_norm", "acc_mutual_info", "exact_match", "f1", "em")  # in [0, 1], and higher is better


def run_harness(
    task: HarnessTask,
    model: MatrixModel,
    backends: Backends,
    folder: Path,
    clusters: Mapping[str, str],
    cluster_field: str | None,
    first: str | None,
) -> CellResult:
    """Run tasks of the files in a folder, together one task of the matrix.

    clusters: names of the tasks, with the cluster of their items. cluster_field: of a document, in its place. first:
    the measure that is compared by default. Raises UserError.
    """
    samples, higher = harness_samples(task, model, backends, folder, list(clusters))
    items, chance = [], []
    for name, found in samples.items():
        items += _items(name, found, clusters.get(name, name), cluster_field)
        chance += [1 / len(sample["arguments"]) for sample in found if len(sample["arguments"]) > 1]
    return CellResult(_measures(items, chance, higher, first), items)


def harness_samples(
    task: HarnessTask, model: MatrixModel, backends: Backends, folder: Path, names: list[str]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, bool]]:
    """lm-eval's samples by task, and whether more of a metric is better. Raises UserError."""
    with _offline():
        return _samples(task, model, backends, folder, names)


def _samples(
    task: HarnessTask, model: MatrixModel, backends: Backends, folder: Path, names: list[str]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, bool]]:
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        loaded = TaskManager(include_path=str(folder), include_defaults=False).load(names)
    except Exception as error:  # a task file can make lm-eval and datasets raise anything
        raise UserError(f"{folder}: lm-eval cannot load {', '.join(names)}: {type(error).__name__}: {error}") from None
    for each in loaded["tasks"].values():
        if task.shots is not None or each.get_config("num_fewshot") is None:
            each.set_config(key="num_fewshot", value=task.shots or 0)
        each.set_fewshot_seed(seed=SEED)
    lm = _quiet(load_model(task, model, backends))
    random.seed(SEED)
    try:
        found = evaluate(
            lm=lm,
            task_dict=loaded,
            limit=task.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=task.chat,
            fewshot_as_multiturn=task.chat,
        )
    except Exception as error:  # of a model that cannot take a prompt, of a task's own functions
        raise UserError(f"lm-eval ended with {type(error).__name__}: {error}") from error
    higher = {name: whether for each in found["higher_is_better"].values() for name, whether in each.items()}
    return found["samples"], higher


@contextmanager
def _offline() -> Iterator[None]:
    """Set what keeps libraries from asking a hub, and a cache of data sets that is gone at the end.

    It counts for libraries that are not imported yet: a cell's process has imported none.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory(prefix="datasets-") as folder:
        os.environ["HF_DATASETS_CACHE"] = folder
        yield


def _quiet(lm: Any) -> Any:
    """The model, which shows its progress on terminals only."""
    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until") if not sys.stderr.isatty() else ():
        setattr(lm, name, partial(getattr(lm, name), disable_tqdm=True))
    return lm


def load_model(task: HarnessTask, model: MatrixModel, backends: Backends) -> Any:
    """The model, as lm-eval takes it. Raises UserError if it cannot be loaded."""
    try:
        return _in_vllm(model, backends) if task.backend == "vllm" else _in_transformers(model, backends)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"{model.folder}: {task.backend} cannot load the model: {error}") from None


def _in_transformers(model: MatrixModel, backends: Backends) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    from trainer.run.quiet import quiet_transformers

    quiet_transformers()
    return HFLM(
        pretrained=model.folder,
        backend="causal",
        device="cuda" if torch.cuda.is_available() else "cpu",
        dtype=backends.hf.dtype,
        batch_size=backends.hf.batch_size,
        max_length=backends.hf.max_length,
        trust_remote_code=model.trust_remote_code,
    )


def _in_vllm(model: MatrixModel, backends: Backends) -> Any:
    from trainer.matrix.vllm_metadata import name_vllm

    name_vllm()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import torch
    from lm_eval.models.vllm_causallms import VLLM

    settings = backends.vllm
    memory: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_memory_utilization}
    if not torch.cuda.is_available():
        memory = {"kv_cache_memory_bytes": settings.cpu_kv_cache_gib << 30}
    return VLLM(
        pretrained=model.folder,
        dtype=settings.dtype,
        max_model_len=settings.max_length,
        tensor_parallel_size=settings.tensor_parallel,
        trust_remote_code=model.trust_remote_code,
        enforce_eager=settings.eager,
        **memory,
    )


def _items(name: str, samples: list[dict[str, Any]], cluster: str, cluster_field: str | None) -> list[MatrixItem]:
    """One item for each document, with the scores of all filters."""
    scores: dict[int, dict[str, float]] = {}
    for sample in samples:
        of_filter = "" if sample["filter"] == "none" else f" ({sample['filter']})"
        found = {f"{metric}{of_filter}": sample[metric] for metric in sample["metrics"]}
        numbers = {metric: float(value) for metric, value in found.items() if isinstance(value, Real)}
        scores.setdefault(sample["doc_id"], {}).update(numbers)
    last = {sample["doc_id"]: sample for sample in samples}
    return [
        MatrixItem(
            id=f"{name}/{number:06d}",
            cluster=str(sample["doc"].get(cluster_field, "")) if cluster_field else cluster,
            scores=scores[number],
            prompt=_valid(str(sample["arguments"][0][0])[-SHOWN:]),
            answer=_valid(_answer(sample)[:SHOWN]),
            wanted=_valid(_wanted(sample)[:SHOWN]),
        )
        for number, sample in sorted(last.items())
    ]


def _valid(text: str) -> str:
    """Text that can be written as UTF-8: a data file's JSON may escape half of a pair."""
    return text.encode("utf-8", "replace").decode()


def _answer(sample: dict[str, Any]) -> str:
    """The text that was generated, or the likeliest of the choices."""
    replies = sample["filtered_resps"]
    if len(replies) == 1:
        reply = sample["resps"][0][0]
        return reply if isinstance(reply, str) else str(replies[0])
    likelihoods = [float(reply[0]) for reply in replies]
    return _choice(sample, likelihoods.index(max(likelihoods)))


def _wanted(sample: dict[str, Any]) -> str:
    target = sample["target"]
    is_choice = len(sample["arguments"]) > 1 and str(target).isdecimal() and int(target) < len(sample["arguments"])
    return _choice(sample, int(target)) if is_choice else str(target)


def _choice(sample: dict[str, Any], number: int) -> str:
    return str(sample["arguments"][number][1]).strip()


def _measures(
    items: list[MatrixItem], chance: list[float], higher: Mapping[str, bool], first: str | None
) -> list[Measure]:
    names = list(dict.fromkeys(name for item in items for name in item.scores))
    if not names:
        raise UserError("lm-eval gave no score for single items; choose a task whose metrics are means over items")
    if first in names:
        names.insert(0, names.pop(names.index(first)))
    guessed = sum(chance) / len(chance) if len(chance) == len(items) else None
    return [
        Measure(
            name=name,
            value=mean_of(items, name),
            unit="" if name.split(" ")[0] in SHARES else "points",
            higher_is_better=higher.get(name.split(" ")[0]) is not False,
            chance=guessed if name.startswith("acc") else None,
        )
        for name in names
    ]
