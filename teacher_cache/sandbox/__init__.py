"""Runs Python that nobody has read, in processes that may do as little as Linux allows."""
