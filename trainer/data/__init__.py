"""From caches to batches: selecting, ordering and reading samples."""
