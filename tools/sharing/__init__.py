"""Transfer of caches, whole or in part, between folders and object stores."""
