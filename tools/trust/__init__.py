"""Who vouches for a cache."""
