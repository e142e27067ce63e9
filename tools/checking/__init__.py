"""Verification of caches."""
