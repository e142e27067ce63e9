"""What the scores of two models say about their difference: intervals, tests, and the words that follow from them.

Pure functions of arrays. Names end in their shape: S training seeds, N items, G clusters, B resamples.
"""
