"""Export to, and import from, the file layouts of other systems; one module per layout."""
