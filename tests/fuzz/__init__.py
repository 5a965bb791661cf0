"""Inputs that nothing of ours would write, by the hundred thousand, into all that decodes bytes from outside.

`make fuzz` runs 100,000 for each decoder; the tests run a small part of the same sequence. Nothing may crash: an input
is decoded, or refused with the one error that the decoder's docstring names, in one line that says something.
"""
