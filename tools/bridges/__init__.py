"""Bridges: caches in the layouts of other systems, and their data as caches. One file a layout."""
