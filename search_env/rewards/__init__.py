"""Rewards, each on one page: a pure formula from measured numbers to one number, with every part named."""
