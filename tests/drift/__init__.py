"""Is learning without pause worth it? A world that drifts, simulated people, and five ways to keep up with it."""
