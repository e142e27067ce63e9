"""The commands of ``cache-tools``, each a thin layer over a module of ``tools``."""
