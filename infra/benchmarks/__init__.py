"""Our speed beside that of a peer: the rows of `searchloop bench`, how they run, and the table of the page.

A row is a script of tests/benchmarks in a clone of the repository. The script alternates our side with its peer and
prints one JSON line, in which `values` holds a list of values for each row, one value a run.
"""
