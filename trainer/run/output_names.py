"""Names of files in a run's output that other code reads, and how large a small one may be."""

METRICS, SUMMARY = "metrics.jsonl", "summary.json"
RUN_FILE = "run.json"
SAMPLES_FILE = "samples.jsonl"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's
MODEL_MARKS = ("config.json", ADAPTER_CONFIG)  # without it, nothing loads the folder of a model, of an adapter
MAX_BYTES = 4 << 20  # of RUN_FILE and SUMMARY
