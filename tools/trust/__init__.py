"""Signing of caches, and management of trusted keys."""
