"""What must hold of a cache before anything of it is used: its digest, and who signed it."""
