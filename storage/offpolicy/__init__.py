"""Off-policy evaluation: what a version would have earned on logged traffic that other versions answered.

Everything comes from the ledger's final outcomes. There is no clock and no unseeded randomness, so the same ledger
gives the same bytes.
"""
