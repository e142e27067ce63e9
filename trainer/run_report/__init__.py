"""The report of one or several training runs as one self-contained HTML page."""
