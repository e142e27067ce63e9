"""Proving that a cache is what it says."""
