"""A curated corpus on disk: its rows, its manifest, and reading them."""
