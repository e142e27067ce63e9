"""Trains a student from cached signals, with no teacher in the process."""
