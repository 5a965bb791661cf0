"""What the log said, kept so that it can be asked: one DuckDB ledger, a Parquet archive, evaluation and reports.

The sink alone writes the ledger. Everything else reads closed archive segments, or the ledger once the sink is gone.
"""
