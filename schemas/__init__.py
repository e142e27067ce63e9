"""The contract between teams: what a configuration, a manifest and a shard may contain. Imports nothing of ours."""
