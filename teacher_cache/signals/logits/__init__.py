"""The ``logits`` signal: of each row's next-token distribution the likeliest entries and the log-partitions."""
