"""What is captured of a teacher. ``logits``, the hot path, is written out where it is used; each other signal is a
folder (its records, its codec, its capture) and a line of ``side_table``.
"""
