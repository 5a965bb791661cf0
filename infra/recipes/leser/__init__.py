"""LESER: from an index and queries to a warmed-up policy, what a version writes, and the search that it helps."""
