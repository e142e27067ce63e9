"""Names of files in a run's output that other code reads, and how large a small one may be."""

METRICS, SUMMARY = "metrics.jsonl", "summary.json"
RUN_FILE = "run.json"
SAMPLES_FILE = "samples.jsonl"
MAX_BYTES = 4 << 20  # of RUN_FILE and SUMMARY
