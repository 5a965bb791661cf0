"""Simulated people who use a server over HTTP. Every figure that comes from them is called simulated."""
