"""Discovery of caches: catalogues, search, cards."""
