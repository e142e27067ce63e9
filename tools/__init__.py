"""The ``cache-tools`` command line: inspect, verify, share and derive caches."""
