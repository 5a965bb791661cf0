"""Live experiments: what may be said at any moment of a stream of outcomes, however often somebody looks."""
