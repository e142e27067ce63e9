"""A matrix of models and tasks: every cell a process of its own, kept by the digests of what decided it."""
