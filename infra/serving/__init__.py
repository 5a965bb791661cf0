"""Serving over HTTP: raw or helped results, expansions and summaries for people, and what they do with them."""
