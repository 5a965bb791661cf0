"""The faults of the matrix in their full dose: `python -m tests.faults`, one row of a table for each."""
