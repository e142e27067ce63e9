"""Data flows one way: what may import what, in the syntax tree (also inside functions) and in a running process."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from support.import_graph import PACKAGES, ROOT, cycles, import_graph, module_files, reach

FILES = module_files()
GRAPH = import_graph(FILES)

MAY_IMPORT = {
    "schemas": {"schemas"},
    "teacher_cache": {"schemas", "teacher_cache"},
    "trainer": {"schemas", "teacher_cache", "trainer"},
    "tools": {"schemas", "teacher_cache", "tools"},
    "benchmarks": {"schemas", "teacher_cache", "trainer", "tools", "benchmarks"},
}
# Rooms of a package from the bottom up: a room imports those above it in this list, and none of its own line.
ROOMS = {
    "teacher_cache": [
        "pages records process child_process text output_head lengths decoder_layers model_class query_key"
        " attention_implementation ahead stop_request logs gpu_driver token_table"
        " device_memory sandbox inspectable_llvmlite queue_policy user_file hub",
        "token_batch model_folder",
        "codec teacher vocabulary progress",
        "signals",
        "shards options engines",
        "generated",
        "curated",
        "corpus trust teacher_head",
        "api tokenizer writing teacher_vocabulary",
        "plan retarget",
        "claims estimate",
        "queue_claims",
        "job",
        "generation curation",
        "command program",
        "preview fleet",
        "teacher_cache_cli",
    ],
    "trainer": [
        "student loggers",
        "losses data",
        "measured_pruning",
        "sample_sums",
        "measures retargeting",
        "run evaluate",
        "quantization",
        "initial_weights",
        "adapters",
        "loop rounds matrix api run_report push_student",
        "distiller",
        "train_student_cli",
    ],
    "tools": [
        "checked_parts",
        "checking trust looking",
        "bridges making finding report",
        "sharing",
        "commands",
        "cache_tools_cli",
    ],
}
NEVER = {  # also inside functions, and through others
    "trainer": ("teacher_cache.engines", "teacher_cache.job", "teacher_cache.plan", "teacher_cache.writing"),
    "teacher_cache.api": ("teacher_cache.engines", "teacher_cache.corpus"),
    "teacher_cache.shards": ("teacher_cache.engines", "teacher_cache.corpus"),
}
MODEL_LIBRARIES = ("torch", "transformers", "vllm")
LOADS_NONE_OF = {  # in this order, by one process
    "schemas.load": MODEL_LIBRARIES,
    "teacher_cache.shards.reader": MODEL_LIBRARIES,
    "teacher_cache.api": MODEL_LIBRARIES,
    "teacher_cache.teacher_cache_cli": MODEL_LIBRARIES,
    "trainer.train_student_cli": MODEL_LIBRARIES,
    "trainer.api": MODEL_LIBRARIES,
    "trainer.rounds.rounds_run": MODEL_LIBRARIES,
    "trainer.matrix.matrix_run": MODEL_LIBRARIES,
    "tools.cache_tools_cli": MODEL_LIBRARIES,
    "teacher_cache.job": ("vllm",),
    "trainer.distiller": ("vllm",),
}
MIRRORED = {"__init__", "__main__", "record", "codec", "capture"}


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_imports_inside_functions_are_seen_and_those_of_type_checkers_are_not(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    sources = {
        "__init__": "",
        "a": "import os\nfrom p.b import c\n",
        "b": "def f():\n    if True:\n        import p.c\n",
        "c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.d import x\nelse:\n    import p.a\n",
        "d": "from p import c\n",
    }
    for name, source in sources.items():
        (tmp_path / "p" / f"{name}.py").write_text(source)
    graph = import_graph(module_files(["p"], tmp_path))
    assert graph == {"p": set(), "p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a"}, "p.d": {"p.c"}}
    assert cycles(graph) == [["p.a", "p.b", "p.c"]]
    assert reach(graph, ["p.d"]) == {"p.a", "p.b", "p.c", "p.d"}


def test_there_are_no_import_cycles() -> None:
    assert len(GRAPH) > 200
    assert cycles(GRAPH) == []


def test_packages_import_only_those_below() -> None:
    found = {(module.split(".")[0], other.split(".")[0], module) for module in GRAPH for other in GRAPH[module]}
    assert {each for each in found if each[1] not in MAY_IMPORT[each[0]]} == set()


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_those_below(package: str) -> None:
    levels = {room: level for level, rooms in enumerate(ROOMS[package]) for room in rooms.split()}
    inside = {module: module.split(".")[1] for module in GRAPH if module.startswith(f"{package}.")}
    assert {*inside.values()} == {*levels}, "a room that ROOMS does not list, or that is not there any more"
    upwards = {
        (module, other)
        for module in inside
        for other in GRAPH[module] & set(inside)
        if inside[module] != inside[other] and levels[inside[other]] >= levels[inside[module]]
    }
    assert upwards == set()


@pytest.mark.parametrize("package", NEVER)
def test_forbidden_packages_are_not_reached(package: str) -> None:
    reached = reach(GRAPH, [module for module in GRAPH if is_in(module, package)])
    assert {module for module in reached for never in NEVER[package] if is_in(module, never)} == set()


def test_importing_a_module_does_not_load_model_libraries() -> None:
    """One process imports all in turn and says after each what is loaded."""
    program = f"""
import importlib, json, sys
for module in {list(LOADS_NONE_OF)}:
    importlib.import_module(module)
    print(json.dumps([module, [name for name in {MODEL_LIBRARIES} if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = dict(json.loads(line) for line in done.stdout.splitlines())
    assert list(loaded) == list(LOADS_NONE_OF)
    assert {module: [name for name in loaded[module] if name in LOADS_NONE_OF[module]] for module in loaded} == {
        module: [] for module in loaded
    }


def test_base_names_of_modules_are_unique() -> None:
    """Other than test files and what mirrors something on purpose."""
    named = defaultdict(list)
    for file in module_files((*PACKAGES, "tests/support")).values():
        named[file.stem].append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in named.items() if len(files) > 1 and name not in MIRRORED} == {}
