"""Records out of files: one reader a format. A reader yields the fields of each record, or BadRecord in its place."""
