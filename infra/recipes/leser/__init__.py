"""LESER: preparation up to a warmed-up policy, expansions by a policy version, and search with them."""
