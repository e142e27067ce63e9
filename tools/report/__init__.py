"""``cache-tools report``: a self-contained HTML file that shows a cache, without network access."""
