"""What a training run writes, and how it ends: checkpoints, metrics, summary, failures."""
