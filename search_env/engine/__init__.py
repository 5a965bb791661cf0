"""Elasticsearch: the client, which indexes are ours, the indexes and vectors themselves, and searching them."""
