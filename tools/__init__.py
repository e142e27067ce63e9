"""Commands for people who share caches."""
