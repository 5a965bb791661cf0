"""The proof that the log, the ledger and the checkpoints agree: one account, and a finding for whatever does not.

For every candidate below the checked end offsets there is exactly one terminal outcome, and at most one gradient along
the surviving checkpoint lineage. Nothing here talks to Kafka or reads a checkpoint: what they say is handed in.
"""
