"""Questions that people ask the ledger: kept as SQL files, and asked read-only, within limits."""
