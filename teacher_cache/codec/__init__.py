"""Encode records to bytes and decode them."""
