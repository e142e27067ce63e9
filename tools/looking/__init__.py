"""Statistics of caches: their contents, and how certain their teachers are."""
