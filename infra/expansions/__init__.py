"""Expansions for queries (LESER): lessons and first policy, what a version writes, and the search that it helps."""
