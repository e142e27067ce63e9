"""``python -m benchmarks [NAME…]``: run benchmarks (default: all), each in its own process, and summarise their bars.

Exit status 3 if a bar is missed, 1 if a benchmark crashed. Seven that train students are not included, because each
takes at least as long as all of these together: the demo (``make demo``), ``benchmarks.loss_quality``,
``benchmarks.cross_tokenizer``, ``benchmarks.rounds``, ``benchmarks.a3b``, ``benchmarks.target_quality`` and
``benchmarks.two_teachers``.
"""

import subprocess
import sys
from dataclasses import replace

from benchmarks.support.results import BAR_MISSED, RESULTS, Row, print_table, read_results

NAMES = (
    "exactness",
    "size",
    "capture_step",
    "encoding",
    "decode",
    "streaming",
    "short_samples",
    "fidelity",
    "capture",
    "memory_growth",
    "signals",
    "taps",
    "lean_loss",
    "attention_memory",
    "step_cost",
    "quantized_step",
    "adapters",
    "scale",
    "merging",
    "remote",
    "sharing",
    "target_gradients",
    "another_tokenizer",
    "generation",
    "ffn_pruning",
    "three_bits",
    "near_duplicates",
    "curation_memory",
    "decontamination",
    "evaluation_backends",
    "interval_coverage",
    "queue_makespan",
    "fleet_simulation",
)


def main(names: list[str]) -> int:
    """Run the benchmarks called ``names``; returns the exit status."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"error: no benchmark named {', '.join(unknown)}; choose from {', '.join(NAMES)}", file=sys.stderr)
        return 2
    closing: list[Row] = []
    statuses = []
    for name in names or NAMES:
        print(f"\n── {name} ──", flush=True)
        status = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
        statuses.append(status)
        if status in (0, BAR_MISSED):
            rows = read_results(RESULTS / f"{name}.json")[1]
            closing += [replace(row, what=f"{name}: {row.what}") for row in rows if row.bar]
        else:
            closing.append(Row(f"{name}: did not finish", f"exit status {status}", bar="0", holds=False))
    print()
    print_table("All bars", closing)
    print("python -m benchmarks.readme updates the tables of the docs")
    if all(status == 0 for status in statuses):
        return 0
    return BAR_MISSED if all(status in (0, BAR_MISSED) for status in statuses) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
