"""The student: making it, looking inside it, and what it needs to be saved and read again."""
