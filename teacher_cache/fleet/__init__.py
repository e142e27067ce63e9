"""Many workers of one job: each is the command with ``--queue``; what starts them differs."""
