"""Serving without HTTP: the choice of what a person sees, and the answers that are ready. All of it is pure."""
