"""Common parts of all verbs: the home, settings and their layers, progress, signals, and the app."""
