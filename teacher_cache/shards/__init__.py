"""Shards and the manifest on disk or in an object store: writing, indexing, reading."""
