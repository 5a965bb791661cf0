"""Shared parts of ReLSum and ReSuMe: products as a policy sees them, their values, and summaries within a budget."""
