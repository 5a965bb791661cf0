"""The faults of the matrix in their full dose: `python -m tests.faults`, one row of a table for each."""

from infra.app.libraries import set_library_variables

set_library_variables()  # Before torch: weights that are made again have the same bits only with as many threads.
