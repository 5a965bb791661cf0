"""Queries with known answers: made from the catalogue, with their judgments."""
