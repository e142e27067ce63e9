"""From the engine's tensors to the records that are stored."""
