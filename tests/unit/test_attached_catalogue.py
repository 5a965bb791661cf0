"""A catalogue that holds a sample: documents outside it get the numbers that they have in the whole catalogue."""

from __future__ import annotations
