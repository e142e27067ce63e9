"""Checks before a cache is used: its digest and its signatures."""
