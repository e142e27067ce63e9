"""The run around the loop: arguments, checkpoints and resume, metrics, final model, summary, failures."""
