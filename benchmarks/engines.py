"""Correctness of every architecture × signal × engine: each cell must be right, or refused with an error.

Tiny random models of every family (``tests/support/families.py``) are scored by both engines in float32, all signals at
once, and each is compared with one eager forward pass of transformers. Hidden states are compared before quantisation.
Where vLLM's CPU kernels support only bfloat16, the family is also run in bfloat16, within rounding. Finally, working
engines are deliberately broken after loading, and the self-check must refuse them.

``python -m benchmarks.engines`` writes ``docs/engines.md`` and ``docs/engines.json``.
"""

import contextlib
import gc
import importlib.metadata
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch._dynamo

from benchmarks.support.common import in_own_process
from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import validate
from teacher_cache.engines import load_engine
from teacher_cache.engines.engine import Engine
from teacher_cache.engines.known import check_known
from teacher_cache.engines.kv_cache import STEPS
from teacher_cache.engines.self_check import Expected, expected, measure, self_check
from teacher_cache.lengths import check_length
from teacher_cache.records import Captured
from teacher_cache.signals.draws.capture import draw, uniforms
from teacher_cache.signals.hidden.capture import HiddenRows
from teacher_cache.signals.side_table import check_teacher
from teacher_cache.teacher import load_model_config
from tests.support.families import BFLOAT16_IN_VLLM, FAMILIES, LAYERS, MAX_TOKENS, write_family

ENGINES = ("vllm", "transformers")
SIGNALS = ("logits", "draws", "final", "hidden", "attention")
BARS = {"logits": 1e-4, "draws": 1e-4, "final": 1e-5, "hidden": 1e-5, "attention": 1e-4}
UNITS = {"logits": "nat", "draws": "nat", "final": "relative", "hidden": "relative", "attention": "of a weight"}
CAPTURE: dict[str, Any] = {
    "logits": {"k": 20, "temperatures": [1.0, 3.0]},
    "draws": {"n": 8, "temperatures": [1.0, 3.0]},
    "final": {"dtype": "float16"},
    "hidden": {"layers": LAYERS, "dtype": "float16"},
    "attention": {"layer": LAYERS[-1], "heads": 2, "keys": 8},
}
PAGE = Path("docs/engines.md")
INTRODUCTION = (
    "Measured by `python -m benchmarks.engines` on tiny random models with the features of their family (soft caps, "
    "windows shorter than the sequences, norms of q and k, multipliers, partial rotary embeddings, experts, linear "
    "attention). A number means that the signal is correct: it is the largest error against one eager float32 pass of "
    "transformers (in bfloat16, the mean error, which stays within rounding). *Refused* means that `run` ends, for the "
    "reason below, before it stores a row. States are compared before quantisation. All of this is on CPUs; on GPUs "
    "vLLM has other kernels, and the self-check compares them at every start."
)
Cells = dict[str, dict[str, str | float]]
"""Signal → ``state`` (right, refused, wrong), and ``error`` or ``reason``."""


def config_of(folder: Path, kind: str, signals: list[str], dtype: str = "float32", **engine: Any) -> CacheConfig:
    """A job's configuration that captures ``signals``."""
    tree = {
        "teacher": {"path": str(folder), "dtype": dtype},
        "engine": {"kind": kind, "device": "cpu", "max_batch_tokens": 256, **engine},
        "corpus": {"sources": [{"path": "unused", "format": "text"}], "max_tokens": MAX_TOKENS},
        "capture": {"draws": None, **{name: CAPTURE[name] for name in signals}},
        "output": {"path": "unused"},
    }
    return validate(CacheConfig, tree, "engines")


def cells_of(folder: Path, kind: str, wanted: Expected, dtype: str = "float32") -> Cells:
    """The cell of each signal for one family and engine, following the steps of ``teacher-cache run``."""
    cells: Cells = {}
    signals = list(SIGNALS)
    while signals:
        config = config_of(folder, kind, signals, dtype)
        try:
            _check_plan(config)
            with cheap(), load_engine(config) as engine:
                if kind == "vllm":
                    _check_cache_room(engine, config)
                cells |= _compared(engine, config, wanted)
            break
        except UserError as error:
            named = [name for name in signals if str(error).startswith(f"capture.{name}")]
            for name in named or signals:
                cells[name] = {"state": "refused", "reason": str(error).replace(str(folder), "…")}
            signals = [name for name in signals if name not in named] if named else []
    return {name: cells[name] for name in SIGNALS}


def _check_plan(config: CacheConfig) -> None:
    """The planning checks that depend on the teacher."""
    model_config = load_model_config(config.teacher)
    check_length(config, model_config.get_text_config())
    check_teacher(config.capture, model_config.get_text_config(), config.corpus.max_tokens)
    check_known(config, model_config)


def _check_cache_room(engine: Any, config: CacheConfig) -> None:
    """Raise RuntimeError if vLLM's KV cache does not hold the two steps that it is meant for."""
    cache = engine._llm.llm_engine.vllm_config.cache_config
    if cache.num_gpu_blocks * cache.block_size < STEPS * config.engine.max_batch_tokens:
        raise RuntimeError(f"the KV cache has {cache.num_gpu_blocks} blocks of {cache.block_size} tokens")


def _compared(engine: Engine, config: CacheConfig, wanted: Expected) -> Cells:
    """The cells of a loaded engine. Raises UserError where the self-check would refuse it."""
    if config.teacher.dtype != "float32":
        errors = self_check(engine, config, wanted)
        errors.setdefault("draws", errors["logits"])  # draws come from the same logits
        return {name: {"state": "right", "error": float(f"{errors[name]:.2g}")} for name in config.capture.signals}
    with raw_states():
        captured = engine.score(wanted.requests)
        errors = {}
        for key, error in measure(captured, wanted, config.capture).items():
            errors[key.signal] = max(error.worst, errors.get(key.signal, 0.0))
    if config.capture.draws is not None:
        errors["draws"] = _draws_error(captured, wanted, config)
    if any(errors.get(name, float("inf")) > BARS[name] for name in config.capture.signals):
        self_check(engine, config, wanted)
    return {
        name: {"state": "right" if error <= BARS[name] else "wrong", "error": float(f"{error:.2g}")}
        for name in config.capture.signals
        for error in [errors.get(name, float("inf"))]
    }


def _draws_error(captured: list[Captured], wanted: Expected, config: CacheConfig) -> float:
    """Largest entropy error, nats; infinite if more than 1 % of drawn ids differ (few may, near CDF edges)."""
    capture = config.capture.draws
    assert capture is not None
    same = total = 0
    worst = 0.0
    for sample, request, computed in zip(captured, wanted.requests, wanted.exact, strict=True):
        head_ids = torch.from_numpy(sample.logits.ids)
        again = draw(computed.logits_SV, head_ids, torch.from_numpy(uniforms(request, capture)), capture.temperatures)
        draws = sample.side["draws"]
        worst = max(worst, float(np.abs(draws.entropy - again.entropy_NT.numpy()).max()))
        same, total = (
            same + int((draws.ids == again.ids_NTM.numpy()).sum()),
            total + draws.ids.size,
        )
    return worst if same >= 0.99 * total else float("inf")


@contextlib.contextmanager
def cheap() -> Iterator[None]:
    """Spare tiny models the seven garbage collections that vLLM does at every start."""
    try:
        with mock.patch.object(gc, "collect", return_value=0):
            yield
    finally:
        gc.collect()


@contextlib.contextmanager
def raw_states() -> Iterator[None]:
    """Make this process's engines store hidden states unquantised, in float32."""

    def keep(hidden_ND: torch.Tensor, _capture: Any) -> HiddenRows:
        return HiddenRows(hidden_ND.float(), *[hidden_ND.new_empty((len(hidden_ND), 0))] * 3)

    with (
        mock.patch("teacher_cache.signals.hidden.capture.quantise", keep),
        mock.patch("teacher_cache.signals.final.capture.quantise", keep),
        mock.patch("teacher_cache.engines.self_check.to_floats", lambda sample, _: torch.from_numpy(sample.values)),
    ):
        yield


def scale_head(model: Any) -> None:
    """Break the model: scale its logits by 1.2."""
    if hasattr(model, "logits_processor"):
        model.logits_processor.scale *= 1.2
    else:
        model.lm_head.weight.data.mul_(1.2)


def add_residual(model: Any) -> None:
    """Break the model: add a layer's input to its output a second time."""
    inner = getattr(model, "language_model", model).model

    def add(_layer: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        given = kwargs.get("hidden_states")
        given = next(part for part in args if part.is_floating_point()) if given is None else given
        return (output[0] + given, *output[1:]) if isinstance(output, tuple) else output + given

    inner.layers[1].register_forward_hook(add, with_kwargs=True)


def ignore_soft_cap(model: Any) -> None:
    """Break the model: disable the soft cap of attention scores."""
    for layer in model.model.layers:
        attention = layer.self_attn
        if hasattr(attention, "attn"):
            attention.attn.impl.logits_soft_cap = 0
        else:
            attention.attn_logit_softcapping = None


BROKEN: dict[str, tuple[str, Callable[[Any], None]]] = {
    "scaled head": ("Llama", scale_head),
    "extra residual": ("Llama", add_residual),
    "ignored soft cap": ("Gemma-2", ignore_soft_cap),
}


def break_and_check(folder: Path, kind: str, wanted: Expected, breaks: Callable[[Any], None]) -> dict[str, str | float]:
    """The self-check's verdict on an engine broken by ``breaks`` after loading, and the seconds it took."""
    config = config_of(folder, kind, ["logits", "hidden"])
    with cheap(), load_engine(config) as engine:
        if kind == "vllm":
            engine._llm.apply_model(breaks)  # type: ignore[attr-defined]
        else:
            breaks(engine._model)  # type: ignore[attr-defined]
        started = time.perf_counter()
        try:
            self_check(engine, config, wanted)
        except UserError as error:
            return {"state": "refused", "reason": str(error), "seconds": round(time.perf_counter() - started, 1)}
    return {"state": "wrong", "reason": "the self-check let it pass"}


def survey(kind: str, names: list[str] | None = None) -> dict[str, Any]:
    """The cells of every family for one engine, and of the broken engines, all in this process."""
    torch._dynamo.config.disable = True  # vLLM would spend twenty seconds compiling norms
    logging.disable(logging.WARNING)
    result: dict[str, Any] = {"versions": _versions(kind), "families": {}, "broken": {}}
    with tempfile.TemporaryDirectory() as parent:
        folders = {name: write_family(name, Path(parent) / str(i)) for i, name in enumerate(names or FAMILIES)}
        wanted = {name: _expected(folder, "float32") for name, folder in folders.items()}
        rounded = {name: _expected(folders[name], "bfloat16") for name in BFLOAT16_IN_VLLM if name in folders}
        for name, folder in folders.items():
            result["families"][name] = cells_of(folder, kind, wanted[name])
            print(f"{kind} {name}: {_in_short(result['families'][name])}", file=sys.stderr, flush=True)
        if kind == "vllm":
            for name, expectation in rounded.items():
                cells = cells_of(folders[name], kind, expectation, "bfloat16")
                result["families"][f"{name} (bfloat16)"] = cells
                print(f"{kind} {name} (bfloat16): {_in_short(cells)}", file=sys.stderr, flush=True)
        for what, (name, breaks) in BROKEN.items():
            if name in folders:
                result["broken"][what] = break_and_check(folders[name], kind, wanted[name], breaks)
                print(f"{kind} {what}: {result['broken'][what]}", file=sys.stderr, flush=True)
    return result


def _versions(kind: str) -> dict[str, str]:
    packages = [importlib.metadata.packages_distributions()[kind][0], "transformers", "torch"]
    return {name: importlib.metadata.version(name) for name in dict.fromkeys(packages)}


def _expected(folder: Path, dtype: str) -> Expected:
    found = expected(config_of(folder, "transformers", list(SIGNALS), dtype, self_check="on"))
    assert found is not None
    return found


def _in_short(cells: Cells) -> str:
    return ", ".join(f"{name} {cell.get('error', cell['state'])}" for name, cell in cells.items())


def wrong_cells(result: dict[str, Any]) -> list[str]:
    """Cells and broken engines that are neither right nor refused."""
    cells = [(name, signal, cell) for name, row in result["families"].items() for signal, cell in row.items()]
    cells += [("broken", what, cell) for what, cell in result["broken"].items()]
    return [f"{name}, {signal}: {cell}" for name, signal, cell in cells if cell["state"] not in ("right", "refused")]


def page(results: dict[str, dict[str, Any]]) -> str:
    """The text of ``docs/engines.md``."""
    reasons: list[str] = []

    def shown(cell: dict[str, Any]) -> str:
        if cell["state"] != "refused":
            return f"{cell['error']:.0e}" if cell["state"] == "right" else "**wrong**"
        if cell["reason"] not in reasons:
            reasons.append(cell["reason"])
        return f"refused ({reasons.index(cell['reason']) + 1})"

    bars = ", ".join(f"{name} {bar:.0e} {UNITS[name]}" for name, bar in BARS.items())
    lines = ["# Engines and architectures", "", f"{INTRODUCTION} Bars: {bars}."]
    for kind, result in results.items():
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        lines += [
            "",
            f"## {kind}",
            "",
            f"With {versions}.",
            "",
            f"| family | {' | '.join(SIGNALS)} |",
            "|---|" + "---:|" * len(SIGNALS),
        ]
        for name, cells in result["families"].items():
            lines.append(f"| {name} | {' | '.join(shown(cells[signal]) for signal in SIGNALS)} |")
    lines += ["", "## Reasons", "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))]
    lines += ["", "## Engines broken on purpose", "", "| engine | what | the self-check |", "|---|---|---|"]
    for kind, result in results.items():
        lines += [f"| {kind} | {what} | {cell['reason']} |" for what, cell in result["broken"].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run both engines, each in its own process; returns the exit status."""
    results = {kind: in_own_process(survey, kind) for kind in ENGINES}
    PAGE.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    wrong = [f"{kind}: {cell}" for kind, result in results.items() for cell in wrong_cells(result)]
    print(*wrong or [f"{PAGE}: every cell is right or refused"], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
