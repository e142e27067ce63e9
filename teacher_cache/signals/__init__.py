"""Signals: the kinds of data captured from a teacher. ``logits``, the hot path, is written out where it is used; every
other signal is a folder (records, codec, capture) and a line in ``side_table``.
"""
