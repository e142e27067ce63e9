"""From caches to batches: which samples, in which order, and reading them."""
