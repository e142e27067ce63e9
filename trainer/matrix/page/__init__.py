"""The report of a matrix as one self-contained HTML page."""
