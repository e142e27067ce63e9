"""Weights of few bits: the grid, scales found from a calibration, folding, and files that other programs load."""
