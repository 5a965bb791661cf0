"""Storage: one DuckDB ledger of the log, a Parquet archive, evaluation and reports.

Only the sink writes the ledger. All other code reads closed archive segments, or the ledger after the sink has stopped.
"""
