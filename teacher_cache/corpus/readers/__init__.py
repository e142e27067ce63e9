"""One reader per file format. A reader yields the fields of each record, or a BadRecord in its place."""
