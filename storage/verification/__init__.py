"""The proof that the log, the ledger and the checkpoints agree: one account, with a finding for each disagreement.

For every candidate below the checked end offsets there is exactly one terminal outcome, and at most one gradient along
the surviving checkpoint lineage. This package neither talks to Kafka nor reads checkpoints: the caller passes their
contents in.
"""
