"""Experiments: a paper's whole table from one plan, arm by arm and seed by seed, with its results."""
