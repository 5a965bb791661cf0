"""Traffic that other systems logged, read as feedback: whole searches, with what was shown and what was done.

Logs from outside are taken as they are: what cannot be used is left out and counted, never guessed.
"""
