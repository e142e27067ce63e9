"""Loggers beside ``metrics.jsonl``: W&B, MLflow and Trackio, each in a thread of its own; never in training's way."""
