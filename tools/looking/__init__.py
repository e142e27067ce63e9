"""Figures of caches: what they hold, and how sure their teachers are."""
