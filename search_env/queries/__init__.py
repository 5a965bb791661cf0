"""Queries whose right answers are known: made from the catalogue, with their judgments."""
