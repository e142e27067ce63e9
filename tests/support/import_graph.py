"""Who imports whom among our own modules, as the syntax tree says it: also inside functions."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "teacher_cache", "trainer", "tools", "benchmarks")
Graph = Mapping[str, set[str]]


def module_files(packages: Iterable[str] = PACKAGES, root: Path = ROOT) -> dict[str, Path]:
    """File of each module, by dotted name."""
    found = {}
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def import_graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Of each module the others that it imports; what only a type checker imports is left out."""
    return {
        module: {known for name in imported(file.read_text()) if (known := _known(name, files))} - {module}
        for module, file in files.items()
    }


def imported(source: str) -> Iterator[str]:
    """Dotted names that a module imports; of ``from a import b`` it is ``a.b``."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; imports here name the whole path"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def _known(name: str, files: Mapping[str, Path]) -> str:
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def cycles(graph: Graph) -> list[list[str]]:
    """Modules that import one another, however far around: each group sorted."""
    reached = {module: reach(graph, graph[module]) for module in graph}
    groups = {
        tuple(sorted({module, *(other for other in reached[module] if module in reached[other])}))
        for module in graph
        if module in reached[module]
    }
    return [list(group) for group in sorted(groups)]


def reach(graph: Graph, start: Iterable[str]) -> set[str]:
    """These modules, and all that they import, directly or not."""
    found: set[str] = set()
    pending = list(start)
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending += graph[module]
    return found
