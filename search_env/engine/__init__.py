"""Elasticsearch: the client, the ownership of indexes, documents and vectors in indexes, and searches."""
