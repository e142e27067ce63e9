"""Generated replies on disk: files of prompts and replies, commit marks, the manifest; and reading them."""
