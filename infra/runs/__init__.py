"""Runs: their preparation, their stream of workers, their proof, and alternations of several runs."""
