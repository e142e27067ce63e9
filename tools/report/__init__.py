"""``cache-tools report``: one HTML file that shows a cache; everything is inside, and nothing is fetched."""
