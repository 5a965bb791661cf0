"""Simulated people who use a server over HTTP, or fill a run without one. Each figure of theirs is called simulated."""
