"""The losses of the objective, one file each, and what they share."""
