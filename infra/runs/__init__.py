"""A run: prepared, begun, streamed by its workers, proved, and turns that string runs together."""
