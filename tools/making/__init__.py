"""Making caches of other caches."""
