"""A run: prepared, begun, streamed by its workers, and where they find their policy."""
