"""The ``logits`` signal: next-token distributions, of each row the likeliest entries and log-partitions."""
