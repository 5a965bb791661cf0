"""The live monitor: it reads a run's topics, publishes windows, and shows them. Nothing depends on it."""
