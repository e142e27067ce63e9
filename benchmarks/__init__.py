"""Ratio benchmarks and the demo: each one command that prints a table for eyes and writes JSON for machines."""
