"""Finding caches: catalogues, search, cards."""
