"""Runs the teacher once and keeps its per-token signals in sharded, checksummed files."""
