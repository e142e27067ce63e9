"""Every family × signal × engine is right or refused by name, and engines broken on purpose are refused.

One process per engine runs all families (see ``benchmarks/engines.py``); results must match ``docs/engines.md``.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engines import BROKEN, ENGINES, PAGE, SIGNALS, page, survey
from benchmarks.support.common import in_own_process
from support.families import BFLOAT16_IN_VLLM, FAMILIES

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.timeout(1200)  # the first test waits for both processes


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with ThreadPoolExecutor(len(ENGINES)) as threads:
        return dict(zip(ENGINES, threads.map(lambda kind: in_own_process(survey, kind), ENGINES), strict=True))


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    return json.loads((ROOT / PAGE).with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ENGINES)
def test_every_cell_is_right_or_refused_by_name(found: dict[str, Any], kind: str) -> None:
    families = found[kind]["families"]
    assert set(families) >= set(FAMILIES)
    for name, cells in families.items():
        assert set(cells) == set(SIGNALS)
        for signal, cell in cells.items():
            assert cell["state"] in ("right", "refused"), f"{name}, {signal}: {cell}"
            if cell["state"] == "refused":
                assert re.match(r"(capture|corpus|teacher|engine)\.[\w.]+: ", cell["reason"]), cell["reason"]
                assert "\n" not in cell["reason"]


@pytest.mark.parametrize("kind", ENGINES)
def test_results_match_the_documented_ones(found: dict[str, Any], documented: dict[str, Any], kind: str) -> None:
    def states(result: dict[str, Any]) -> dict[str, list[str]]:
        return {name: [cells[signal]["state"] for signal in SIGNALS] for name, cells in result["families"].items()}

    assert states(found[kind]) == states(documented[kind])
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(documented)


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("kind", ENGINES)
def test_an_engine_broken_on_purpose_is_refused(found: dict[str, Any], kind: str, what: str) -> None:
    cell = found[kind]["broken"][what]
    assert cell["state"] == "refused"
    assert re.match(rf"engine\.self_check: the {kind} engine computes other values .* off by ", cell["reason"])
    assert cell["seconds"] < 10


def test_multimodal_classes_give_text_signals_in_vllm(found: dict[str, Any]) -> None:
    """M-RoPE positions [3, N], classes whose image processors cannot be imported, linear attention in bfloat16."""
    families = found["vllm"]["families"]
    multimodal = ("Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "Gemma-3 (multimodal)", "Gemma-4 (multimodal)")
    for name in (*multimodal, *(f"{name} (bfloat16)" for name in BFLOAT16_IN_VLLM)):
        assert [families[name][signal]["state"] for signal in SIGNALS] == ["right"] * len(SIGNALS), name


@pytest.mark.parametrize("kind", ENGINES)
def test_layers_with_several_residual_streams_are_refused_by_name(found: dict[str, Any], kind: str) -> None:
    for name, returned in (("Gemma-3n", r"\[4, "), ("DeepSeek-V4", r"\[2, 64, 4, 64\]")):
        cell = found[kind]["families"][name]["hidden"]
        assert cell["state"] == "refused"
        if kind == "transformers":
            assert re.match(
                rf"capture\.hidden: layer 1: a \w+ of transformers returns a tensor {returned}", cell["reason"]
            )


def test_parallel_layers_have_right_hidden_states_in_vllm(found: dict[str, Any]) -> None:
    for name in ("Cohere", "GPT-NeoX", "Falcon", "Phi-2"):
        assert found["vllm"]["families"][name]["hidden"]["state"] == "right", name
